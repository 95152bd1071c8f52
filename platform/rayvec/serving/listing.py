"""What there is to know of an open index, as `GET /v1/indexes` tells it. Knows an index and its manifest. No route."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rayvec.indexing.filters import is_filterable
from rayvec.schema import TEXT
from rayvec.serving.search import index_modes

if TYPE_CHECKING:
    from rayvec.indexing.searcher import Index


@dataclass(frozen=True)
class Described:
    """Fields of `schemas.ServedIndex` that the index itself tells, and a newer version that is not served, and why."""

    fields: dict[str, Any]
    refused: str | None


def described(index: Index) -> dict[str, Any]:
    """Facts of the version that is open, by the names of `schemas.ServedIndex`."""
    from rayvec.indexing.updates import advice

    manifest = index.manifest
    proof = manifest["proof"]
    return {
        "created": int(datetime.fromisoformat(manifest["made"]).timestamp()),
        "version": index.version,
        "documents": index.count,
        "deleted_rows": len(index.dropped),
        "segments": len(index.segments),
        "dimensions": index.dim,
        "dimensions_indexed": manifest["dim_index"],
        # Vectors are brought to length 1, so that inner products are cosines.
        "metric": "cosine" if manifest["normalize"] else "inner_product",
        "kind": manifest["factory"],
        "search": manifest["search"],
        "modes": index_modes(index),
        "columns": [
            {"name": name, "type": str(kind), "filterable": name != TEXT and is_filterable(kind)}
            for name, kind in index.column_types().items()
        ],
        "fingerprint": index.fingerprint.short,
        "proof": {
            "recall": proof["recall"],
            "target": proof["target"],
            "queries": proof.get("queries"),
            "unproved_rows": proof.get("unproved", {}).get("rows", 0),
        },
        "advice": advice(manifest),
    }
