"""What a version is made of: the base, the deltas that updates added, and the rows that are deleted or replaced.

Rows are numbered through all segments, in their order; a row keeps its number until the index is compacted. A delta
lies in a folder of its own within the version's, with files named as the base's are.

Knows manifests, folders and row numbers. Knows no FAISS, no BM25, no documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.failures import storage_errors
from rayvec.indexing.ranking import Rows
from rayvec.storage import JsonObject

#: How the folders of deltas are named, within a version's.
DELTA = "delta-"
#: And those of embeddings that lie within a version: what a service wrote, which no job has embedded.
EMBEDDINGS = "embeddings-"
#: Tombstones: the rows that are deleted or replaced, ascending.
DROPPED = "dropped.npy"
#: Rows of a segment's embeddings, counted through its sources, that did not go into it; ascending.
LEFT_OUT = "left_out.npy"


@dataclass(frozen=True)
class Source:
    """A published version of embeddings, as a manifest names it: by its place, or by a folder within the version."""

    uri: str
    version: int
    manifest_sha256: str
    rows: int
    #: The folder that ids made of file names are relative to; None where there are none.
    names_by_place: str | None = None

    @classmethod
    def of(cls, dataset: EmbeddingsDataset) -> Source:
        """What to write down of a dataset, so that exactly it is found again."""
        place = dataset.manifest.get("settings", {}).get("source", {}).get("names_by_place")
        return cls(dataset.uri, dataset.version, _sha256(dataset), dataset.count, place)

    @property
    def is_inside(self) -> bool:
        """Whether it lies within the version, and goes where that goes."""
        return self.uri.startswith(EMBEDDINGS) and "/" not in self.uri

    def open(self, version: Path) -> EmbeddingsDataset:
        """The dataset. Raises UserError when it is gone, MismatchError when another lies in its place."""
        try:
            dataset = EmbeddingsDataset.open(str(version / self.uri) if self.is_inside else self.uri, self.version)
        except UserError:
            raise UserError(
                f"the index was built from the embeddings {self.uri} (v{self.version}), and they are gone; put them "
                "back, or build the index from others with python -m jobs.index"
            ) from None
        if _sha256(dataset) != self.manifest_sha256:
            raise MismatchError(
                f"{self.uri} v{self.version} is not what the index was built from: they differ in manifest_sha256 "
                f"({_sha256(dataset)[:12]} and {self.manifest_sha256[:12]}); put the old embeddings back, or build anew"
            )
        return dataset


@dataclass(frozen=True)
class Segment:
    """Rows [start, start + rows) of a version, the folder within it, and the embeddings that they came from.

    left_out: how many rows of those embeddings are not in it; lexical: whether its texts hold a word to be found.
    """

    folder: str
    start: int
    rows: int
    sources: tuple[Source, ...]
    left_out: int = 0
    lexical: bool = False

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.start + self.rows

    def file(self, version: Path, name: str) -> Path:
        """Where one of its files lies."""
        return version / self.folder / name

    def to_json(self) -> JsonObject:
        """Its entry in the manifest."""
        return {**asdict(self), "sources": [asdict(source) for source in self.sources]}


def segments_of(manifest: Mapping[str, Any]) -> list[Segment]:
    """The segments of a version, in the order of their rows."""
    return [
        Segment(**{**entry, "sources": tuple(Source(**source) for source in entry["sources"])})
        for entry in manifest["segments"]
    ]


def rows_of(manifest: Mapping[str, Any]) -> int:
    """Rows of all segments, deleted ones too."""
    return segments_of(manifest)[-1].stop


def save_rows(path: Path, rows: Rows) -> None:
    """Write row numbers, unless there are none. Raises StorageError."""
    if len(rows):
        with storage_errors(path):
            np.save(path, rows.astype(np.int64), allow_pickle=False)


def load_rows(path: Path, limit: int) -> Rows:
    """Row numbers that `save_rows` wrote: ascending, in [0, limit); none where there is no file.

    Raises VerificationError when they are anything else.
    """
    if not path.exists():
        return np.empty(0, np.int64)
    try:
        with storage_errors(path, "reading"):
            rows: Rows = np.load(path, allow_pickle=False)
    except ValueError:
        raise VerificationError(f"{path} holds no row numbers; roll back, or build the index again") from None
    if rows.dtype != np.int64 or rows.ndim != 1 or (np.diff(rows) <= 0).any() or not _within(rows, limit):
        raise VerificationError(f"{path} holds no ascending rows below {limit}; roll back, or build the index again")
    return rows


def load_dropped(folder: Path, manifest: Mapping[str, Any]) -> Rows:
    """The tombstones of a version. Raises VerificationError when they do not agree with its counts."""
    total = rows_of(manifest)
    dropped = load_rows(folder / DROPPED, total)
    if total - len(dropped) != manifest["count"]:
        raise VerificationError(
            f"{folder} holds {total} rows of which {len(dropped)} are dropped, not {manifest['count']} documents; "
            "roll back, or build the index again"
        )
    return dropped


def local(dropped: Rows, start: int, rows: int) -> Rows | None:
    """Those of the rows that lie in [start, start + rows), counted from there; None where there are none.

    >>> local(np.array([2, 5, 9]), start=4, rows=5)
    array([1])
    """
    low, high = np.searchsorted(dropped, [start, start + rows])
    return dropped[low:high] - start if low < high else None


def left_out_of(folder: Path, segment: Segment, dropped: Rows) -> Rows:
    """Which rows of a segment's embeddings are not live: those left out when it was built, and those dropped since."""
    total = sum(source.rows for source in segment.sources)
    before = load_rows(segment.file(folder, LEFT_OUT), total)
    since = local(dropped, segment.start, segment.rows)
    return before if since is None else np.union1d(before, numbered_with(since, before))


def numbered_with(rows: Rows, left_out: Rows) -> Rows:
    """Rows counted without those left out, as they are counted with them.

    >>> numbered_with(np.array([0, 1, 2]), left_out=np.array([0, 3]))
    array([1, 2, 4])
    """
    return rows + np.searchsorted(left_out - np.arange(len(left_out)), rows, side="right")


def holding(sources: Sequence[Source], left_out: Rows) -> tuple[tuple[Source, ...], Rows]:
    """The sources that have a row left, and the rows left out counted through those alone."""
    kept: list[Source] = []
    rows: list[Rows] = [np.empty(0, np.int64)]
    start = first = 0
    for source in sources:
        gone = local(left_out, start, source.rows)
        if gone is None or len(gone) < source.rows:
            kept.append(source)
            rows.append((np.empty(0, np.int64) if gone is None else gone) + first)
            first += source.rows
        start += source.rows
    return tuple(kept), np.concatenate(rows)


def names(manifest: Mapping[str, Any]) -> Iterable[str]:
    """The files of a version that the next may take over: all but its tombstones, which it may add to."""
    return [name for name in manifest["files"] if name != DROPPED]


def names_of_sources(manifest: Mapping[str, Any], sources: Iterable[Source]) -> list[str]:
    """The files of a version that are the embeddings of these sources."""
    folders = {source.uri for source in sources if source.is_inside}
    return [name for name in manifest["files"] if name.partition("/")[0] in folders]


def _within(rows: Rows, limit: int) -> bool:
    return not len(rows) or (int(rows[0]) >= 0 and int(rows[-1]) < limit)


def _sha256(dataset: EmbeddingsDataset) -> str:
    return storage.sha256_bytes(storage.to_json(dataset.manifest))
