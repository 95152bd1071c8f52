"""Compact: all segments of an index built anew as one, from their embeddings, without what was deleted or replaced."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines._ray import ray_session
from pipelines.index import IndexConfig, build_version, bytes_by_use, one_segment
from pipelines.report import Report, recipe_family
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.indexing import drafts, places, versions
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from rayvec.indexing.corpus import Corpus
    from rayvec.indexing.ranking import Rows
    from rayvec.indexing.segments import Source

#: What a compaction takes over from the version before; the rest it builds.
KEPT = ("encoder", "fingerprint", "payload", "dtype", "config", "embedded")


class CompactConfig(Config):
    """Which index to compact. How it is built is what its first build was told."""

    kind: Literal["compact"] = "compact"
    #: The folder of an index, or its place in a bucket.
    index: str = ""


def compact(config: CompactConfig) -> Report:
    """Build an index anew from the embeddings of all its segments, without deleted rows, as one segment.

    Raises UserError (embeddings that are gone), MismatchError (others in their place), VerificationError,
    ConcurrentWriterError or StorageError; what was live stays live.
    """
    if not config.index:
        raise UserError("index is required; give the folder of an index with --set index=DIR")
    places.current(config.index)
    seconds: dict[str, float] = {}
    with places.working(config.index) as output, drafts.new_version(output) as draft:
        from rayvec.indexing.documents import columns_in
        from rayvec.indexing.searcher import DOCUMENTS
        from rayvec.indexing.segments import names_of_sources

        folder = versions.version_folder(output)
        before = manifest = versions.read_manifest(folder)
        if len(manifest["segments"]) == 1 and not manifest["dropped"]:
            return _report(config, manifest, before, seconds)
        sources, left_out = sources_of(folder, manifest)
        corpus = replace(corpus_over(folder, sources, left_out), columns=columns_in(folder / DOCUMENTS))
        assert corpus.count == manifest["count"], (corpus.count, manifest["count"])
        sys.stderr.write(f"index: {corpus.count:,} documents of {len(sources)} embeddings\n")
        with ray_session():
            build = IndexConfig.parse(manifest["config"])
            facts = build_version(build, corpus, manifest["payload"], draft, seconds)
        facts |= one_segment(facts, sources, len(left_out))
        _save_left_out(draft.folder, left_out)
        draft.take(folder, manifest, names_of_sources(manifest, sources))
        manifest = draft.commit({**{key: manifest.get(key) for key in KEPT}, **facts, "update": manifest["update"]})
    return _report(config, manifest, before, seconds)


def sources_of(folder: Path, manifest: JsonObject) -> tuple[tuple[Source, ...], Rows]:
    """The embeddings that live rows come from, and their rows that are not live, counted through all of them."""
    import numpy as np

    from rayvec.indexing import segments

    dropped = segments.load_dropped(folder, manifest)
    sources: list[Source] = []
    left_out = [np.empty(0, np.int64)]
    for segment in segments.segments_of(manifest):
        first = sum(source.rows for source in sources)
        left_out.append(segments.left_out_of(folder, segment, dropped) + first)
        sources += segment.sources
    return segments.holding(sources, np.concatenate(left_out))


def corpus_over(folder: Path, sources: tuple[Source, ...], left_out: Rows) -> Corpus:
    """The live vectors of a version's sources. Raises UserError when one is gone, MismatchError when it is another."""
    from rayvec.indexing.corpus import Corpus

    return Corpus.over([source.open(folder) for source in sources], left_out)


def _save_left_out(folder: Path, left_out: Rows) -> None:
    from rayvec.indexing.segments import LEFT_OUT, save_rows

    save_rows(folder / LEFT_OUT, left_out)


def _report(config: CompactConfig, manifest: JsonObject, before: JsonObject, seconds: dict[str, float]) -> Report:
    return {
        "version": manifest["version"],
        "unchanged": manifest is before,
        "why": "one segment, and nothing deleted: there is nothing to compact" if manifest is before else None,
        "documents": manifest["count"],
        "segments_before": len(before["segments"]),
        "dropped_rows_before": before["dropped"],
        "factory": manifest["factory"],
        "search": manifest["search"],
        "recall@10": manifest["proof"]["recall"],
        "bytes_before": bytes_by_use(before),
        "bytes": bytes_by_use(manifest),
        "seconds": seconds,
        "output": config.index,
        "next": f"python -m jobs.serve --recipe {recipe_family(manifest['encoder'])}.serve --set index={config.index}",
    }
