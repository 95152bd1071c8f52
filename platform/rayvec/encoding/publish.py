"""Publishing: duplicates across units settled, the manifest put if absent, CURRENT moved last.

Runs on the driver when every unit has its record. Killed at any point and run again, it comes to the same manifest.
Knows records and parts. Knows no source, no encoder, no Ray.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayvec import schema, storage, uris
from rayvec.data.embeddings import CURRENT, FORMAT, document_ids, document_rows, manifest_uri
from rayvec.data.ids import repeated_places
from rayvec.data.units import Unit
from rayvec.encoding.lengths import added
from rayvec.encoding.shards import Plan
from rayvec.encoding.sink import Record, Sink
from rayvec.encoding.work import POSITION, duplicate_line
from rayvec.errors import ConcurrentWriterError
from rayvec.faults import failpoint

#: (index of the unit, place of the document in its part)
Place = tuple[int, int]


def settle_duplicates(sink: Sink, units: Sequence[Unit], records: Sequence[Record]) -> list[Record]:
    """Keep of the documents with one id the first in the order of the input; write the parts of the others again.

    Depends on what is committed alone: a run that was interrupted here goes on to the same parts.
    """
    kept_of: dict[int, dict[int, Place]] = defaultdict(dict)
    for (unit, document), place in _repeated_places(sink, records).items():
        kept_of[unit][document] = place
    kept_units = {unit for places in kept_of.values() for unit, _ in places.values()}
    positions = {unit: sink.hashes(records[unit])[1] for unit in kept_units}  # before any part is replaced
    settled = list(records)
    for unit, places in sorted(kept_of.items()):
        kept = {document: (units[first], int(positions[first][there])) for document, (first, there) in places.items()}
        settled[unit] = _without(sink, units[unit], records[unit], kept)
    return settled


def _repeated_places(sink: Sink, records: Sequence[Record]) -> dict[Place, Place]:
    """For each document whose id an earlier one has: where that first one is."""
    total = sum(record.documents for record in records)
    return {
        (later[0], later[1]): (first[0], first[1])
        for laters, firsts in repeated_places((sink.hashes(record)[0] for record in records), total)
        for later, first in zip(laters.tolist(), firsts.tolist(), strict=True)
    }


def _without(sink: Sink, unit: Unit, record: Record, kept: Mapping[int, tuple[Unit, int]]) -> Record:
    """The unit committed anew without some documents, each of them a duplicate line instead."""
    table, (_, positions) = sink.table(record), sink.hashes(record)
    of_row = document_rows(table)
    documents = pa.table({schema.ID: document_ids(table), POSITION: positions})
    if schema.TEXT in table.schema.names and schema.WINDOW not in table.schema.names:
        documents = documents.append_column(schema.TEXT, table[schema.TEXT])
    lines = [duplicate_line(unit, documents.slice(number, 1), *first) for number, first in sorted(kept.items())]
    before = sink.lines(record.unit)
    known = {(line["reason"], line["source"], line["position"]) for line in before}
    lines = [line for line in lines if (line["reason"], line["source"], line["position"]) not in known]
    remaining = table.filter(pa.array(~np.isin(of_row, list(kept)))).combine_chunks()
    return sink.replace(record, remaining, np.delete(positions, sorted(kept)), before + lines)


def totals(records: Sequence[Record]) -> dict[str, Any]:
    """Sums over all units."""
    names = ("rows", "documents", "bytes", "quarantined", "duplicates", "truncated", "tokens")
    reasons: Counter[str] = Counter()
    nulled, given, later = Counter[str](), Counter[str](), Counter[str]()
    for record in records:
        reasons.update(record.reasons)
        nulled.update(record.nulled)
        given.update(record.given)
        later.update(record.later)
    sums = {name: sum(getattr(record, name) for record in records) for name in names}
    return {
        "records": sum(record.input_records for record in records),
        **sums,
        "lengths": added([record.lengths for record in records]),
        "lengths_truncated": added([record.lengths_truncated for record in records]),
        "reasons": dict(sorted(reasons.items())),
        "nulled": dict(sorted(nulled.items())),
        "given": dict(sorted(given.items())),
        "later": dict(sorted(later.items())),
    }


def manifest(plan: Plan, records: Sequence[Record], sink: Sink, reference: str) -> dict[str, Any]:
    """What is published, but for its version. Equal records give equal manifests: no time, no machine."""
    return {
        "format": FORMAT,
        "count": sum(record.rows for record in records),
        "dim": plan.settings.get("dimensions") or plan.fingerprint.dim,
        "normalize": plan.fingerprint.normalize or plan.settings.get("normalize", False),
        "dtype": plan.settings["dtype"],
        "fingerprint": plan.fingerprint.model_dump(),
        "encoder": reference,
        "payload": _payload(sink, records),
        "settings": dict(plan.settings),
        "plan_sha256": plan.sha256,
        "parts": [record.to_json() for record in records],
        "totals": totals(records),
    }


def publish(sink: Sink, content: Mapping[str, Any]) -> tuple[int, str]:
    """Put the manifest as the next version and point CURRENT at it; returns the version and the manifest's SHA-256.

    A version with this content that is there already is not put again. Raises ConcurrentWriterError (exit status 4)
    when another run puts the same version first.
    """
    names = storage.list_names(uris.join(sink.output, "manifests"))
    newest = max((int(name[1:-5]) for name in names if name.startswith("v") and name.endswith(".json")), default=0)
    version = newest
    if not newest or storage.read_json(manifest_uri(sink.output, newest)) != {**content, "version": newest}:
        version = newest + 1
    data = storage.to_json({**content, "version": version})
    failpoint("before_manifest")
    if version > newest and not storage.put_if_absent(manifest_uri(sink.output, version), data):
        raise ConcurrentWriterError(f"another run has just published v{version} of {sink.output}; run again to compare")
    failpoint("after_manifest")
    storage.write_bytes(uris.join(sink.output, CURRENT), f"v{version}\n".encode())
    return version, storage.sha256_bytes(data)


def _payload(sink: Sink, records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    carried = {field.name for field in schema.WINDOW_FIELDS}
    names = sink.columns(records[0])
    return [name for name in names if name in carried or name not in schema.RESERVED]
