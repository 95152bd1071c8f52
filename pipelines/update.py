"""Update: new embeddings upserted by id, and ids deleted, as a small delta beside what is there.

It costs what is new: the files of the version before are linked, not copied, and not read but for their ids and the
searches of the proof.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, field_validator

from pipelines._ray import ray_session
from pipelines.index import bytes_by_use, timed
from pipelines.report import Report, recipe_family
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.indexing import drafts, places
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa

    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.drafts import Draft
    from rayvec.indexing.updates import Before, Delta


class UpdateConfig(Config):
    """What to put into an index, and what to take out of it."""

    kind: Literal["update"] = "update"
    #: The folder of an index, or its place in a bucket.
    index: str = ""
    #: The output of the embed job over new and changed documents; a document with an id that is there replaces it.
    embeddings: str = ""
    #: A text file of ids to delete, one a line, or a list of them. They go first: what `embeddings` holds stays in.
    delete: str | tuple[str, ...] = ""
    #: Whether documents whose ids were made of file names may replace those of files in another folder.
    replace_names: bool = False
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


def update(config: UpdateConfig) -> Report:
    """Upsert embeddings by id into an index and delete ids, as a new version that becomes the live one.

    Raises UserError, MismatchError (embeddings of another encoder), VerificationError, ConcurrentWriterError or
    StorageError; what was live stays live.
    """
    from rayvec.indexing.updates import Before, Delta

    if not config.index:
        raise UserError("index is required; give the folder of an index with --set index=DIR")
    if not config.embeddings and not config.delete:
        raise UserError("nothing to do; give --set embeddings=DIR, --set delete=FILE of ids, or both")
    places.current(config.index)
    seconds: dict[str, float] = {}
    with places.working(config.index) as folder, drafts.new_version(folder) as draft:
        before = Before.live(folder)
        asked = _asked(config, before.manifest)
        if _is_done(before.manifest, asked.facts):
            return _report(config, before.manifest, {}, seconds, drift=None)
        with ray_session() if asked.dataset else contextlib.nullcontext():
            delta = Delta.of(asked.dataset, before, partial(timed, seconds)) if asked.dataset else None
            facts, counts, drift = _apply(config, draft, before, asked, delta, seconds)
        manifest = before.manifest if facts is None else draft.commit({**facts, "seconds": seconds})
    return _report(config, manifest, counts, seconds, drift=drift)


def _asked(config: UpdateConfig, manifest: JsonObject) -> _Asked:
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.data.ids import digest_ids
    from rayvec.indexing.segments import Source
    from rayvec.indexing.updates import check_encoder
    from rayvec.indexing.upserts import hashes_of, read_ids

    deletes = read_ids(config.delete)
    facts: JsonObject = {"embeddings": None, "deletes": digest_ids(hashes_of(deletes)) if len(deletes) else None}
    if not config.embeddings:
        return _Asked(None, deletes, facts)
    dataset = EmbeddingsDataset.open(config.embeddings)
    check_encoder(dataset, manifest)
    facts["embeddings"] = Source.of(dataset).manifest_sha256
    return _Asked(dataset if dataset.count else None, deletes, facts)


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
    before: Before,
    asked: _Asked,
    delta: Delta | None,
    seconds: dict[str, float],
) -> tuple[JsonObject | None, JsonObject, float | None]:
    """Fill the draft. Returns what its manifest says (None where nothing changes), counts, and the lexical drift."""
    from rayvec.indexing import updates

    with timed(seconds, "ids"):
        gone, counts = updates.look_up(before, asked.deletes, delta)
    if delta is not None and not config.replace_names:
        updates.check_names(before, delta, counts["replaced"])
    if delta is None and not len(gone):
        return None, counts, None
    said = {"update": asked.facts, "by": None}
    facts = updates.fill(draft, before, gone, delta, said, partial(timed, seconds))
    with timed(seconds, "prove"):
        proof, drift = updates.prove(draft, facts, config.seed)
    return facts | proof, counts, drift


def _report(
    config: UpdateConfig, manifest: JsonObject, counts: JsonObject, seconds: dict[str, float], *, drift: float | None
) -> Report:
    from rayvec.indexing.updates import advice

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
