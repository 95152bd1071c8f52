"""Update: new embeddings upserted by id, and ids deleted, as a small delta beside what is there.

It costs what is new: the files of the version before are linked, not copied, and not read but for their ids and the
searches of the proof.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, field_validator

from pipelines._ray import ray_session
from pipelines.index import DELTA, bytes_by_use, timed
from pipelines.report import Report, recipe_family
from rayvec.config import Config
from rayvec.errors import MismatchError, UserError
from rayvec.faults import failpoint
from rayvec.indexing import spec, versions
from rayvec.schema import ID, TEXT, TITLE
from rayvec.storage import Fingerprint, JsonObject

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.build import Corpus
    from rayvec.indexing.ranking import Rows
    from rayvec.indexing.segments import Source
    from rayvec.indexing.versions import Draft

#: A delta is compared vector by vector; beyond this size it is stored in 16 bits, which costs no recall that shows.
FLAT_BYTES = 256 << 20
#: Shares of the rows, and a number of segments, from which on a search costs more than it need: then compact.
COMPACT_SHARE, COMPACT_SEGMENTS = 0.1, 32


class UpdateConfig(Config):
    """What to put into an index, and what to take out of it."""

    kind: Literal["update"] = "update"
    #: The folder of an index.
    index: str = ""
    #: The output of the embed job over new and changed documents; a document with an id that is there replaces it.
    embeddings: str = ""
    #: A text file of ids to delete, one a line, or a list of them. They go first: what `embeddings` holds stays in.
    delete: str | tuple[str, ...] = ""
    #: Of the sample for the proof.
    seed: NonNegativeInt = 0

    @field_validator("delete", mode="before")
    @classmethod
    def _numbers_are_ids_too(cls, value: Any) -> Any:
        """YAML reads 12 as a number; in a list of ids it is one."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(str(id_) if type(id_) is int else id_ for id_ in value)


@dataclass(frozen=True)
class _Asked:
    """What is asked for: new embeddings (None: none, or none that hold a row), ids to delete, and what stands for both.

    `facts` go into the manifest, so that the same update is known again.
    """

    dataset: EmbeddingsDataset | None
    deletes: pa.Array
    facts: JsonObject


@dataclass(frozen=True)
class _Delta:
    """The new vectors, checked, the ids of their documents, and those of the rows that a later one replaces."""

    corpus: Corpus
    source: Source
    ids: pa.Array
    repeats: Rows


def update(config: UpdateConfig) -> Report:
    """Upsert embeddings by id into an index and delete ids, as a new version that becomes the live one.

    Raises UserError, MismatchError (embeddings of another encoder), VerificationError, ConcurrentWriterError or
    StorageError; what was live stays live.
    """
    if not config.index:
        raise UserError("index is required; give the folder of an index with --set index=DIR")
    if not config.embeddings and not config.delete:
        raise UserError("nothing to do; give --set embeddings=DIR, --set delete=FILE of ids, or both")
    versions.current(config.index)
    seconds: dict[str, float] = {}
    with versions.new_version(config.index) as draft:
        folder = versions.version_folder(config.index)
        manifest = versions.read_manifest(folder)
        asked = _asked(config, manifest)
        if _is_done(manifest, asked.facts):
            return _report(config, manifest, {}, seconds, drift=None)
        with ray_session() if asked.dataset else contextlib.nullcontext():
            delta = _delta(asked.dataset, folder, manifest, seconds) if asked.dataset else None
            facts, counts, drift = _apply(config, draft, folder, manifest, asked, delta, seconds)
        if facts is not None:
            manifest = draft.commit({**facts, "seconds": seconds})
    return _report(config, manifest, counts, seconds, drift=drift)


def _asked(config: UpdateConfig, manifest: JsonObject) -> _Asked:
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.data.ids import digest_ids
    from rayvec.indexing.segments import Source
    from rayvec.indexing.upserts import hashes_of, read_ids

    deletes = read_ids(config.delete)
    facts: JsonObject = {"embeddings": None, "deletes": digest_ids(hashes_of(deletes)) if len(deletes) else None}
    if not config.embeddings:
        return _Asked(None, deletes, facts)
    dataset = EmbeddingsDataset.open(config.embeddings)
    _check_encoder(dataset, manifest)
    facts["embeddings"] = Source.of(dataset).manifest_sha256
    return _Asked(dataset if dataset.count else None, deletes, facts)


def _delta(dataset: EmbeddingsDataset, folder: Path, manifest: JsonObject, seconds: dict[str, float]) -> _Delta:
    from rayvec.indexing import build
    from rayvec.indexing.searcher import projection_of
    from rayvec.indexing.segments import Source
    from rayvec.indexing.upserts import ids_of

    corpus = replace(build.Corpus.of(dataset), projection=projection_of(folder, manifest))
    with timed(seconds, "check"):
        build.check(corpus)
    _check_columns(corpus, dataset.payload, folder)
    with timed(seconds, "new ids"):
        return _Delta(corpus, Source.of(dataset), *ids_of(corpus.parts, manifest["payload"]))


def _check_encoder(dataset: EmbeddingsDataset, manifest: JsonObject) -> None:
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


def _check_columns(corpus: Corpus, payload: list[str], folder: Path) -> None:
    """Raise UserError, naming the column, unless the new documents have the columns of the index's."""
    from rayvec.indexing import build
    from rayvec.indexing.documents import column_types
    from rayvec.indexing.searcher import DOCUMENTS

    mine = column_types(folder / DOCUMENTS)
    theirs = build.columns(corpus, [ID, TITLE, TEXT, *payload])
    for name in [*mine, *theirs]:
        if name not in theirs:
            raise UserError(
                f"the index's documents have a column {name!r}, and the new embeddings have none; embed with it"
            )
        if name not in mine:
            raise UserError(
                f"the new embeddings have a column {name!r}, and the index's documents have none; embed without it"
            )
        if theirs[name] != mine[name]:
            raise UserError(
                f"column {name!r} is {theirs[name]} in the new embeddings and {mine[name]} in the index; embed it as "
                "it was"
            )


def _is_done(manifest: JsonObject, facts: JsonObject) -> bool:
    """Whether this very update was the last one, or the embeddings are those that the index was built from."""
    from rayvec.indexing.segments import segments_of

    if manifest["update"] is not None or facts["deletes"] is not None:
        return bool(manifest["update"] == facts)
    sources = [source for segment in segments_of(manifest) for source in segment.sources]
    return [source.manifest_sha256 for source in sources] == [facts["embeddings"]]


def _apply(
    config: UpdateConfig,
    draft: Draft,
    folder: Path,
    manifest: JsonObject,
    asked: _Asked,
    delta: _Delta | None,
    seconds: dict[str, float],
) -> tuple[JsonObject | None, JsonObject, float | None]:
    """Fill the draft. Returns what its manifest says (None where nothing changes), counts, and the lexical drift."""
    from rayvec.indexing import segments

    with timed(seconds, "ids"):
        gone, counts = _look_up(folder, manifest, asked.deletes, delta)
    if delta is None and not len(gone):
        return None, counts, None
    dropped = _dropped(folder, manifest, gone, delta)
    count = segments.rows_of(manifest) + (delta.corpus.count if delta else 0) - len(dropped)
    if not count:
        raise UserError("the update would delete every document; an index must hold one: remove its folder instead")
    facts = versions.facts_of(manifest) | {"count": count, "dropped": len(dropped), "update": asked.facts}
    if delta is not None:
        facts |= _add_segment(draft, folder, manifest, delta, seconds)
        failpoint("after_segment")
    with timed(seconds, "link"):
        draft.take(folder, manifest, segments.names(manifest))
        segments.save_rows(draft.folder / segments.DROPPED, dropped)
        failpoint("after_links")
    with timed(seconds, "prove"):
        proof, drift = _prove(config, draft, facts)
    return facts | proof, counts, drift


def _dropped(folder: Path, manifest: JsonObject, gone: Rows, delta: _Delta | None) -> Rows:
    """The tombstones after the update: those before, the rows that go, and rows of the delta that others replace."""
    import numpy as np

    from rayvec.indexing import segments

    dropped: Rows = np.union1d(segments.load_dropped(folder, manifest), gone)
    return dropped if delta is None else np.union1d(dropped, delta.repeats + segments.rows_of(manifest))


def _look_up(folder: Path, manifest: JsonObject, deletes: pa.Array, delta: _Delta | None) -> tuple[Rows, JsonObject]:
    """The live rows that go, and how many documents are new, replaced, deleted, or to be deleted and not there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from rayvec.indexing.upserts import match

    ids = delta.ids if delta else pa.array([], pa.string())
    wanted = pc.unique(pa.chunked_array([ids, deletes]))
    matches = match(folder, manifest, wanted)

    def found(some: pa.Array) -> int:
        return int(matches.found[pc.index_in(some, value_set=wanted).to_numpy()].sum())

    replaced, deleted = found(ids), found(deletes)
    return matches.rows, {
        "added": len(ids) - replaced,
        "replaced": replaced,
        "deleted": deleted,
        "unknown_ids": len(deletes) - deleted,
    }


def _add_segment(
    draft: Draft, folder: Path, manifest: JsonObject, delta: _Delta, seconds: dict[str, float]
) -> JsonObject:
    """Write the delta into the draft. Returns what it changes in the manifest."""
    from rayvec.indexing import build
    from rayvec.indexing.searcher import DOCUMENTS
    from rayvec.indexing.segments import Segment, segments_of

    known, corpus = segments_of(manifest), delta.corpus
    start = known[-1].stop
    place = draft.folder / f"{DELTA}{len(known):05d}"
    place.mkdir()
    with timed(seconds, "fill"):
        entries = _fill(corpus, place)
    with timed(seconds, "documents"):
        build.write_documents(corpus, manifest["payload"], place / DOCUMENTS)
    with timed(seconds, "lexical"):
        lexical = manifest["lexical"] is not None and _write_lexical(folder, manifest, corpus, place)
    entries = [{**e, "file": f"{place.name}/{e['file']}", "start": start + e["start"]} for e in entries]
    added = Segment(place.name, start, corpus.count, (delta.source,), lexical=lexical)
    return {"shards": [*manifest["shards"], *entries], "segments": [*manifest["segments"], added.to_json()]}


def _fill(corpus: Corpus, place: Path) -> list[JsonObject]:
    from rayvec.indexing import build
    from rayvec.indexing.estimate import estimate
    from rayvec.indexing.tasks import Clock

    chosen = spec.choose("Flat", corpus.count, corpus.dim_index)
    if estimate(chosen, corpus.count, corpus.dim_index).bytes > FLAT_BYTES:
        chosen = spec.choose("SQfp16", corpus.count, corpus.dim_index)
    clock = Clock()
    trained, _ = build.train(corpus, chosen, 0, clock)
    return build.fill(corpus, chosen, trained, build.shard_count(corpus, chosen, 0), place, clock)


def _write_lexical(folder: Path, manifest: JsonObject, corpus: Corpus, place: Path) -> bool:
    """Build BM25 over the delta, normalised as the base. Returns whether its texts hold a word."""
    from rayvec.indexing import build
    from rayvec.indexing.lexical import average_length
    from rayvec.indexing.searcher import LEXICAL

    wanted = manifest["lexical"]["columns"]
    missing = [name for name in wanted if name not in build.columns(corpus, wanted)]
    if missing:
        raise UserError(
            f"lexical search of the index reads the column {missing[0]!r}, and the new embeddings have none; embed it"
        )
    average = average_length(folder / LEXICAL)
    return bool(build.write_lexical(corpus, wanted, manifest["lexical"]["stemmer"], place / LEXICAL, average)["terms"])


def _prove(config: UpdateConfig, draft: Draft, facts: JsonObject) -> tuple[JsonObject, float]:
    """Open what was written, and measure it. Returns search and proof for the manifest, and the lexical drift."""
    from rayvec.indexing.proof import prove_again
    from rayvec.indexing.searcher import Index

    opened = Index(draft.folder, facts, threads=None)
    target = float(facts["proof"]["target"])
    found: dict[str, Any] = prove_again(
        opened.shards, opened.dropped_of, facts["dim_index"], facts["search"], target, config.seed
    )
    return {"search": found.pop("search"), "proof": {**facts["proof"], **found}}, opened.lexical_drift()


def advice(manifest: JsonObject) -> str | None:
    """Why the index should be compacted, if it should."""
    from rayvec.indexing.segments import rows_of, segments_of

    segments, rows = segments_of(manifest), rows_of(manifest)
    deltas = (rows - segments[0].rows) / rows
    dropped = manifest["dropped"] / rows
    if max(deltas, dropped) > COMPACT_SHARE or len(segments) > COMPACT_SEGMENTS:
        return (
            f"compact: {deltas:.0%} of the rows lie in {len(segments) - 1} deltas, and {dropped:.0%} are deleted or "
            "replaced; every search pays for them"
        )
    return None


def _report(
    config: UpdateConfig, manifest: JsonObject, counts: JsonObject, seconds: dict[str, float], *, drift: float | None
) -> Report:
    unchanged = not counts or not any(counts[name] for name in ("added", "replaced", "deleted"))
    told, family = advice(manifest), recipe_family(manifest["encoder"])
    verb = "serve" if told is None else "compact"
    return {
        "version": manifest["version"],
        "unchanged": unchanged,
        "why": "this very update is in the live version"
        if not counts
        else "no id of it is there"
        if unchanged
        else None,
        "documents": manifest["count"],
        **counts,
        "segments": len(manifest["segments"]),
        "dropped_rows": manifest["dropped"],
        "search": manifest["search"],
        "recall@10": manifest["proof"]["recall"],
        "lexical_drift": drift,
        "bytes": bytes_by_use(manifest),
        "seconds": seconds,
        "advice": told,
        "output": config.index,
        "next": f"python -m jobs.{'index' if told else 'serve'} --recipe {family}.{verb} --set index={config.index}",
    }
