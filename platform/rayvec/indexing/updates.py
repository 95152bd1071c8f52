"""The next version of an index: documents put in by id, ids taken out, as a small delta beside what is there.

It costs what is new: the files of the version before are linked, not copied, and not read but for their ids and the
searches of the proof. Deltas at the end may be taken into the new one, which then replaces them (`Before.without`).

Knows versions, segments and the steps of a build. Runs them as Ray tasks, or within `tasks.here` in this process. Knows
no configuration, no report and no encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import MismatchError, UserError
from rayvec.failures import storage_errors
from rayvec.faults import failpoint
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import build, segments, spec, tasks, versions
from rayvec.indexing.corpus import Corpus, check_parts, columns_of, schema_of
from rayvec.indexing.documents import Documents, columns_in
from rayvec.indexing.drafts import Draft
from rayvec.indexing.estimate import estimate
from rayvec.indexing.fitting import first_misfit, shown
from rayvec.indexing.lexical import average_length
from rayvec.indexing.proof import prove_again
from rayvec.indexing.ranking import Rows
from rayvec.indexing.searcher import DOCUMENTS, LEXICAL, Index, projection_of
from rayvec.indexing.segments import DELTA, Segment, Source
from rayvec.indexing.shards import Shard
from rayvec.indexing.tasks import Clock
from rayvec.indexing.upserts import Kept, Matches, ids_of, match
from rayvec.indexing.vectors import Part, Slice, read_slice
from rayvec.schema import ID, TEXT, TITLE, WINDOW_FIELDS
from rayvec.storage import JsonObject

#: A delta is compared vector by vector; beyond this size it is stored in 16 bits, which costs no recall that shows.
FLAT_BYTES = 256 << 20
#: Shares of the rows, and a number of segments, from which on a search costs more than it need: then compact.
COMPACT_SHARE, COMPACT_SEGMENTS = 0.1, 32

#: Settings of the embed job by which one encoder makes other vectors of the same document; and, where it is cut, more.
DECIDING = ("instruction", "title", "long", "max_length", "normalize")
WINDOWS = ("window_tokens", "overlap_tokens")

#: Writes down how long a stage takes.
Timed = Callable[[str], AbstractContextManager[None]]


def untimed(_: str) -> AbstractContextManager[None]:
    """A stage whose time nobody asks for."""
    return nullcontext()


@dataclass(frozen=True)
class Before:
    """The version that the next one is made from, as far as it is kept: its folder, manifest, and deleted rows."""

    folder: Path
    manifest: JsonObject
    dropped: Rows

    @classmethod
    def live(cls, output: str | Path) -> Self:
        """The live version."""
        folder = versions.version_folder(output)
        manifest = versions.read_manifest(folder)
        return cls(folder, manifest, segments.load_dropped(folder, manifest))

    @property
    def rows(self) -> int:
        """Rows of all its segments, deleted ones too."""
        return segments.rows_of(self.manifest)

    def without(self, count: int) -> Before:
        """The version but for its last segments, which the next one does not keep."""
        if not count:
            return self
        known = segments.segments_of(self.manifest)
        kept, gone = known[:-count], known[-count:]
        folders = {segment.folder for segment in gone}
        folders |= {source.uri for segment in gone for source in segment.sources if source.is_inside}
        folders -= {source.uri for segment in kept for source in segment.sources}
        manifest = {
            **self.manifest,
            "segments": [segment.to_json() for segment in kept],
            "shards": [entry for entry in self.manifest["shards"] if entry["start"] < kept[-1].stop],
            "files": {n: f for n, f in self.manifest["files"].items() if n.partition("/")[0] not in folders},
        }
        return Before(self.folder, manifest, self.dropped[self.dropped < kept[-1].stop])

    def match(self, ids: pa.Array, kept: Kept | None = None) -> Matches:
        """The live rows of these documents. Not of a version without some of its segments. kept: see upserts.match."""
        return match(self.folder, self.manifest, ids, kept)


@dataclass(frozen=True)
class Delta:
    """The new vectors, checked, the ids of their documents, and those of the rows that a later one replaces."""

    corpus: Corpus
    sources: tuple[Source, ...]
    ids: pa.Array
    repeats: Rows

    @classmethod
    def of(cls, dataset: EmbeddingsDataset, before: Before, timed: Timed = untimed) -> Self:
        """Read embeddings that are to go into an index.

        Raises MismatchError for those of another encoder, UserError, naming the column, for documents whose columns
        those of the index cannot hold, and VerificationError for a damaged part.
        """
        check_encoder(dataset, before.manifest)
        found, columns = Corpus.of(dataset), columns_in(before.folder / DOCUMENTS)
        corpus = replace(found, projection=projection_of(before.folder, before.manifest), columns=columns)
        with timed("check"):
            check_parts(corpus)
            _check_columns(found, dataset.payload, columns)
        with timed("new ids"):
            return cls(corpus, (Source.of(dataset),), *ids_of(corpus.parts, before.manifest["payload"]))


def check_encoder(dataset: EmbeddingsDataset, manifest: JsonObject) -> None:
    """Raise MismatchError, naming the field, unless the vectors may be compared with those of the index."""
    Fingerprint.parse(manifest["fingerprint"]).require(dataset.fingerprint, mine="the index", theirs="the embeddings")
    if dataset.dim != manifest["dim"]:
        raise MismatchError(
            f"the index and the embeddings differ in dim (the index: {manifest['dim']}, the embeddings: "
            f"{dataset.dim}); embed the new documents with the settings of the old ones"
        )
    mine, theirs = manifest["dtype"], dataset.manifest["dtype"]
    if mine != theirs and "binary" in (mine, theirs):  # all other types hold the same numbers, more or less exactly
        raise MismatchError(
            f"the index and the embeddings differ in dtype (the index: {mine}, the embeddings: {theirs}); "
            "embed the new documents with the settings of the old ones"
        )
    check_settings(
        manifest,
        dataset.manifest.get("settings"),
        theirs="the embeddings",
        cure="embed the new documents with the settings of the old ones",
    )


def check_settings(manifest: JsonObject, settings: JsonObject | None, *, theirs: str, cure: str) -> None:
    """Raise MismatchError, naming the setting, where these make other vectors of a document than the index's do.

    What an older manifest does not say is not compared.
    """
    fingerprint = Fingerprint.parse(manifest["fingerprint"])
    old, new = (_deciding(said or {}, fingerprint) for said in (manifest.get("embedded"), settings))
    for name in old:
        if name in new and old[name] != new[name]:
            raise MismatchError(
                f"the index and {theirs} differ in {name} (the index: {old[name]!r}, {theirs}: {new[name]!r}); {cure}"
            )


def _deciding(settings: JsonObject, fingerprint: Fingerprint) -> JsonObject:
    """Those settings of the embed job that decide about vectors, with what the encoder is itself set to."""
    names = DECIDING if settings.get("long") == "truncate" else (*DECIDING, *WINDOWS)
    found = {name: settings[name] for name in names if name in settings}
    if "max_length" in found:
        found["max_length"] = found["max_length"] or fingerprint.max_length
    if "normalize" in found:
        found["normalize"] = found["normalize"] or fingerprint.normalize
    return found


def _check_columns(corpus: Corpus, payload: list[str], columns: pa.Schema) -> None:
    """Raise UserError, naming the column, unless the index's columns hold every value of the new documents.

    A column that the new documents lack is null there. Where types differ, the values of all parts are looked through.
    """
    theirs = schema_of(corpus, [ID, TITLE, TEXT, *payload])
    for field in columns:
        if field.name not in theirs.names and not field.nullable:
            raise UserError(
                f"the index's documents have a column {field.name!r}, and the new embeddings have none; "
                f"{_as_before(field.name, 'true')}"
            )
    for name in theirs.names:
        if name not in columns.names:
            raise UserError(
                f"the new embeddings have a column {name!r}, and the index's documents have none; "
                f"{_as_before(name, 'false')}, or, to have it, embed all documents together and build a new index"
            )
    differing = pa.schema(
        [columns.field(field.name) for field in theirs if field.type != columns.field(field.name).type]
    )
    if not differing.names:
        return
    for found in tasks.each(_misfit, [(part, differing) for part in corpus.parts]):
        if found is not None:
            name, value = found
            raise UserError(
                f"column {name!r} is {differing.field(name).type} in the index and {theirs.field(name).type} in the "
                f"new embeddings, and {value} cannot be kept as it is: correct it where it comes from, embed without "
                "the column (name the others in source.payload), or embed all documents together and build a new index"
            )


def _as_before(name: str, keep_text: str) -> str:
    """How to embed, so that a column is there, or is not."""
    if name in (TITLE, TEXT):
        return f"embed with keep_text={keep_text}"
    if name in {field.name for field in WINDOW_FIELDS}:
        return "embed with long=… as the index's documents were"
    return "embed it too" if keep_text == "true" else "embed without it (name the others in source.payload)"


def _misfit(part: Part, columns: pa.Schema) -> tuple[str, str] | None:
    """A column of a part, and a value that it cannot keep as a column of that type; None where there is none."""
    for batch in read_slice(Slice(part, 0, part.rows), columns.names):
        for name in batch.schema.names:
            value = first_misfit(batch.column(name), columns.field(name).type)
            if value is not None:
                return name, shown(value)
    return None


def fill(
    draft: Draft, before: Before, gone: Rows, delta: Delta | None, facts: JsonObject, timed: Timed = untimed
) -> JsonObject:
    """Fill the draft with what is kept of a version and a delta, without the rows that go. Not proved yet.

    gone: rows of the version before; facts: what the manifest is to say beside. Returns what it says.
    Raises UserError when nothing would be left.
    """
    dropped: Rows = np.union1d(before.dropped, gone[gone < before.rows]).astype(np.int64)
    if delta is not None:
        dropped = np.union1d(dropped, delta.repeats + before.rows)
    count = before.rows + (delta.corpus.count if delta else 0) - len(dropped)
    if not count:
        raise UserError("the update would delete every document; an index must hold one: remove its folder instead")
    said = versions.facts_of(before.manifest) | {"count": count, "dropped": len(dropped)} | facts
    if delta is not None:
        said |= _add_segment(draft, before, delta, timed)
        failpoint("after_segment")
    with timed("link"):
        draft.take(before.folder, before.manifest, segments.names(before.manifest))
        segments.save_rows(draft.folder / segments.DROPPED, dropped)
        failpoint("after_links")
    return said


def look_up(before: Before, deletes: pa.Array, delta: Delta | None) -> tuple[Rows, JsonObject]:
    """The live rows that go, and how many documents are new, replaced, deleted, or to be deleted and not there."""
    ids = delta.ids if delta else pa.array([], pa.string())
    wanted = pc.unique(pa.chunked_array([ids, deletes]))
    matches = before.match(wanted)

    def found(some: pa.Array) -> int:
        return int(matches.found[pc.index_in(some, value_set=wanted).to_numpy()].sum())

    replaced, deleted = found(ids), found(deletes)
    return matches.rows, {
        "added": len(ids) - replaced,
        "replaced": replaced,
        "deleted": deleted,
        "unknown_ids": len(deletes) - deleted,
    }


def check_names(before: Before, delta: Delta, replaced: int) -> None:
    """Raise UserError where documents would be replaced because files of other folders have the same names."""
    known = segments.segments_of(before.manifest)
    there = {source.names_by_place for segment in known for source in segment.sources} - {None}
    new = {source.names_by_place for source in delta.sources} - {None}
    if replaced and there and new - there:
        raise UserError(
            f"{replaced} documents of the index would be replaced by others: ids were made of file names relative to "
            f"{' and '.join(sorted(map(str, there)))} there, and to {' and '.join(sorted(map(str, new)))} here. Embed "
            "the new ones with source.make_ids=content or source.id_column=…, or replace with --set replace_names=true"
        )


def _add_segment(draft: Draft, before: Before, delta: Delta, timed: Timed) -> JsonObject:
    """Write the delta into the draft. Returns what it changes in the manifest."""
    known, corpus, manifest = segments.segments_of(before.manifest), delta.corpus, before.manifest
    start = known[-1].stop
    # Not the number of segments: an earlier one may have gone into a later, and its name with it.
    place = draft.folder / f"{DELTA}{1 + max((_number(segment) for segment in known), default=0):05d}"
    with storage_errors(place):
        place.mkdir()
    with timed("fill"):
        entries = _fill(corpus, place)
    with timed("documents"):
        build.write_documents(corpus, manifest["payload"], place / DOCUMENTS)
    with timed("lexical"):
        lexical = manifest["lexical"] is not None and _write_lexical(before, corpus, place)
    entries = [{**e, "file": f"{place.name}/{e['file']}", "start": start + e["start"]} for e in entries]
    added = Segment(place.name, start, corpus.count, delta.sources, lexical=lexical)
    return {"shards": [*manifest["shards"], *entries], "segments": [*manifest["segments"], added.to_json()]}


def _number(segment: Segment) -> int:
    return int(segment.folder.removeprefix(DELTA) or 0)


def _fill(corpus: Corpus, place: Path) -> list[JsonObject]:
    chosen = spec.choose("Flat", corpus.count, corpus.dim_index)
    if estimate(chosen, corpus.count, corpus.dim_index).bytes > FLAT_BYTES:
        chosen = spec.choose("SQfp16", corpus.count, corpus.dim_index)
    clock = Clock()
    trained, _ = build.train(corpus, chosen, 0, clock)
    return build.fill(corpus, chosen, trained, build.shard_count(corpus, chosen, 0), place, clock)


def _write_lexical(before: Before, corpus: Corpus, place: Path) -> bool:
    """Build BM25 over the delta, normalised as the base. Returns whether its texts hold a word."""
    wanted = before.manifest["lexical"]["columns"]
    missing = [name for name in wanted if name not in columns_of(corpus, wanted)]
    if missing:
        raise UserError(
            f"lexical search of the index reads the column {missing[0]!r}, and the new embeddings have none; embed it"
        )
    average = average_length(before.folder / LEXICAL)
    stemmer = before.manifest["lexical"]["stemmer"]
    return bool(build.write_lexical(corpus, wanted, stemmer, place / LEXICAL, average)["terms"])


def prove(draft: Draft, facts: JsonObject, seed: int) -> tuple[JsonObject, float]:
    """Open what was written, and measure it. Returns search and proof for the manifest, and the lexical drift.

    Raises VerificationError when the recall target is not reached.
    """
    opened = Index(draft.folder, facts, threads=None)
    target = float(facts["proof"]["target"])
    found: dict[str, Any] = prove_again(
        opened.shards, opened.dropped_of, facts["dim_index"], facts["search"], target, seed
    )
    proof = {name: value for name, value in facts["proof"].items() if name != "unproved"}
    return {"search": found.pop("search"), "proof": {**proof, **found}}, opened.lexical_drift()


def check_added(draft: Draft, facts: JsonObject) -> None:
    """Open the files of the last segment, in place of a proof. Raises VerificationError when they are not as said."""
    segment = segments.segments_of(facts)[-1]
    for entry in facts["shards"]:
        if entry["start"] >= segment.start:
            path = draft.folder / entry["file"]
            Shard.read(path, start=entry["start"], rows=entry["rows"], dim=facts["dim_index"])
    assert Documents(segment.file(draft.folder, DOCUMENTS)).count == segment.rows, segment


def advice(manifest: JsonObject) -> str | None:
    """Why the index should be compacted, if it should."""
    known, rows = segments.segments_of(manifest), segments.rows_of(manifest)
    deltas = (rows - known[0].rows) / rows
    dropped = manifest["dropped"] / rows
    if max(deltas, dropped) > COMPACT_SHARE or len(known) > COMPACT_SEGMENTS:
        return (
            f"compact: {deltas:.0%} of the rows lie in {len(known) - 1} deltas, and {dropped:.0%} are deleted or "
            "replaced; every search pays for them"
        )
    return None
