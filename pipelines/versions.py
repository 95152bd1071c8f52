"""The versions of an index, for people: list them, go back, remove old ones, verify the live one, compare two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.compact import corpus_over, sources_of
from pipelines.report import Report
from rayvec.errors import UserError, VerificationError
from rayvec.indexing import places, versions
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from rayvec.data.ids import Hashes
    from rayvec.indexing.ranking import Rows
    from rayvec.indexing.searcher import Index
    from rayvec.indexing.vectors import Vectors

K = 10
#: Documents that two versions are asked for, in runs that lie beside each other: reading one costs its row group.
RUNS, RUN = 32, 8

COLUMNS = (
    "version",
    "live",
    "made (UTC)",
    "documents",
    "deleted",
    "segments",
    "bytes",
    "of them new",
    "factory",
    "recall",
)


def list_index(uri: str) -> list[Report]:
    """What there is to know of each version of an index, oldest first. A damaged manifest is told, not raised."""
    live = places.current(uri)
    seen: set[Any] = set()
    return [_listed(uri, name, name == live, seen) for name in places.list_versions(uri)]


def _listed(uri: str, name: str, live: bool, seen: set[Any]) -> Report:
    """One line; `seen` holds what the versions before take on the disk, and takes in what this one does."""
    sizes = places.sizes(uri, name)
    row: Report = {"version": name, "live": live, "bytes": sum(size for _, size in sizes)}
    row["new_bytes"] = sum(size for key, size in sizes if key not in seen)
    seen.update(key for key, _ in sizes)
    try:
        manifest = places.read_manifest(uri, name)
    except VerificationError as error:
        return row | {"damage": str(error)}
    return row | {
        "made": str(manifest["made"])[:19].replace("T", " "),
        "documents": manifest["count"],
        "deleted": manifest["dropped"],
        "segments": len(manifest["segments"]),
        "factory": manifest["factory"],
        "recall": manifest["proof"]["recall"],
    }


def render_list(rows: list[Report]) -> str:
    """The versions as a table."""
    table = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table)  # fmt: skip  # noqa: E501


def _cells(row: Report) -> tuple[str, ...]:
    from rayvec.indexing.spec import human_bytes

    sizes = human_bytes(row["bytes"]), human_bytes(row["new_bytes"])
    live = "*" if row["live"] else ""
    if "damage" in row:
        return (row["version"], live, "damaged", "", "", "", *sizes, "", "")
    counts = (f"{row[name]:,}" for name in ("documents", "deleted", "segments"))
    return (row["version"], live, row["made"], *counts, *sizes, row["factory"], f"{row['recall']:.3f}")


def roll_back(uri: str, version: str | None) -> Report:
    """Make the version before the live one, or the one named, the live one."""
    before = places.current(uri)
    return {"live": places.rollback(uri, version), "before": before, "output": uri}


def prune(uri: str, keep: int) -> Report:
    """Remove all but the newest versions and the live one."""
    places.current(uri)
    removed = places.prune(uri, keep)
    return {"removed": removed or "none", "kept": places.list_versions(uri), "output": uri}


def verify_index(uri: str) -> Report:
    """Check the live version: size and checksum of every file, counts, and that no two live rows have one id.

    Raises VerificationError with the first fault found.
    """
    from rayvec.data.ids import count_distinct
    from rayvec.indexing.searcher import Index
    from rayvec.indexing.upserts import live_hashes

    opened = Index.open(uri)
    folder = opened.folder
    again = opened.count - count_distinct(live_hashes(folder, opened.manifest), opened.count)
    if again:
        raise VerificationError(
            f"{folder} holds {again} documents whose id another live one has; embed unique ids, and update with them: "
            "an update replaces all documents of an id"
        )
    return {
        "version": opened.version,
        "files": len(opened.manifest["files"]),
        "bytes": sum(int(facts["bytes"]) for facts in opened.manifest["files"].values()),
        "documents": opened.count,
        "deleted": len(opened.dropped),
        "segments": len(opened.segments),
        "faults": 0,
        "output": uri,
    }


@dataclass(frozen=True)
class _Side:
    """One of the two versions that are compared."""

    name: str
    index: Index

    @classmethod
    def open(cls, uri: str, given: str) -> _Side:
        """A version of the index at `uri`, or the live one of the index in another folder."""
        from rayvec.indexing.searcher import Index

        if versions.NAME.fullmatch(given):
            return cls(given, Index.open(uri, given))
        index = Index.open(given)
        return cls(f"{given}@{index.version}", index)

    @property
    def folder(self) -> Path:
        return self.index.folder

    @property
    def manifest(self) -> JsonObject:
        return self.index.manifest

    def ids(self, rows: Rows) -> pa.Array:
        import pyarrow as pa

        return pa.array([document["id"] for document in self.index.documents(rows, ["id"])], pa.string())

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors of live rows, as the encoder made them. Raises UserError when the embeddings are gone."""
        import numpy as np

        from rayvec.indexing.vectors import read_vectors, runs

        corpus = corpus_over(self.folder, *sources_of(self.folder, self.manifest))
        places, back = np.unique(rows - np.searchsorted(self.index.dropped, rows), return_inverse=True)
        pieces = runs(corpus.parts, places)
        return np.concatenate(list(read_vectors(pieces, corpus.dim, normalize=corpus.normalize)))[back]

    def hits(self, rows: Rows, own: list[str]) -> list[dict[str, float]]:
        """The K nearest of each of these documents, by id, without itself."""
        found = self.index.dense(self.vectors(rows), K + 1)
        return [
            {id_: score for id_, score in zip(self.ids(row).to_pylist(), scores.tolist(), strict=True) if id_ != me}
            for row, scores, me in zip(found.rows, found.scores, own, strict=True)
        ]


def compare(uri: str, a: str, b: str, seed: int = 0) -> Report:
    """Ask two versions for the neighbours of the same documents: how alike are the answers, and what does one lack?

    a, b: versions of the index at `uri`, or folders of other indices, whose live version is taken. Each side is asked
    with its own vectors of the documents, so that two encoders can be compared too.

    Raises UserError when no document is in both, or the embeddings of one are gone.
    """
    import numpy as np

    sides = [_Side.open(uri, name) for name in (a, b)]
    rows, ids = _shared_sample(sides[0], sides[1], seed)
    one, other = (side.hits(mine, ids) for side, mine in zip(sides, rows, strict=True))
    overlap = [len(_best(x) & _best(y)) / max(1, min(K, len(x), len(y))) for x, y in zip(one, other, strict=True)]
    drift = [abs(x[id_] - y[id_]) for x, y in zip(one, other, strict=True) for id_ in x.keys() & y.keys()]
    only = _only(*sides)
    same = sides[0].index.fingerprint == sides[1].index.fingerprint
    return {
        "a": _told(sides[0]),
        "b": _told(sides[1]),
        "encoder": "the same" if same else "another: each side was asked with its own vectors",
        "queries": len(ids),
        f"overlap@{K}": float(np.mean(overlap)),
        "same_first": float(
            np.mean([next(iter(x), None) == next(iter(y), None) for x, y in zip(one, other, strict=True)])
        ),
        "score_drift_mean": float(np.mean(drift)) if drift else None,
        "score_drift_p95": float(np.quantile(drift, 0.95)) if drift else None,
        **only,
        "output": uri,
    }


def _best(hits: dict[str, float]) -> set[str]:
    return set(list(hits)[:K])


def _told(side: _Side) -> JsonObject:
    manifest = side.manifest
    return {"version": side.name, "documents": side.index.count, "factory": manifest["factory"]}


def _shared_sample(a: _Side, b: _Side, seed: int) -> tuple[tuple[Rows, Rows], list[str]]:
    """Rows in both versions of documents that both hold, drawn from the first in short runs, and their ids."""
    import numpy as np

    from rayvec.indexing.segments import numbered_with
    from rayvec.indexing.upserts import rows_with

    generator = np.random.default_rng(seed)
    count = a.index.count
    starts = generator.choice(count, min(count, RUNS), replace=False)
    places = np.unique((starts[:, None] + np.arange(RUN)).ravel())
    mine = numbered_with(places[places < count], a.index.dropped)
    ids = a.ids(mine)
    theirs = rows_with(b.folder, b.manifest, ids)
    both = theirs >= 0
    if not both.any():
        raise UserError(f"{a.name} and {b.name} hold none of {len(ids)} sampled documents in common; compare others")
    return (mine[both], theirs[both]), [str(id_) for id_, there in zip(ids.to_pylist(), both, strict=True) if there]


def _only(a: _Side, b: _Side) -> JsonObject:
    """How many documents are in one only, and in both; by hashes, so many at a time as fit the memory."""
    from itertools import chain

    from rayvec.data.ids import count_distinct
    from rayvec.indexing.upserts import live_hashes

    def hashes(side: _Side) -> Iterator[Hashes]:
        return live_hashes(side.folder, side.manifest)

    of_a, of_b = (count_distinct(hashes(side), side.index.count) for side in (a, b))
    of_either = count_distinct(chain(hashes(a), hashes(b)), a.index.count + b.index.count)
    return {"only_in_a": of_either - of_b, "only_in_b": of_either - of_a, "in_both": of_a + of_b - of_either}
