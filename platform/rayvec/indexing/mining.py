"""Hard negatives: which of the documents found for a query teach an encoder something, and which are answers too.

A document that a search ranks high and that does not answer is a hard negative; one that answers, though nobody said
so, is a false negative, and does harm. Nothing but the scores tells them apart, so a candidate must lie under a margin
below the query's own positive: "positive-aware mining" (Moreira et al. 2024, NV-Retriever, arXiv:2407.15831, section 3:
TopK-PercPos is `relative_margin`, TopK-MarginPos is `absolute_margin`). Where rows are windows of documents, candidates
are windows, and what is known of a document holds for all of its windows. Knows numbers and texts of one query at a
time. Knows no encoder, no index and no Ray.

Shapes: K candidates of a query, best first; P positives of a query; N documents of the index.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from rayvec.config import Config
from rayvec.data.ids import hash_ids
from rayvec.data.pairs import is_held_out
from rayvec.indexing.ranking import NO_ROW, Rows
from rayvec.schema import TEXT, TITLE

Hashes = npt.NDArray[np.uint64]
Scores = npt.NDArray[np.float64]
Verdicts = npt.NDArray[np.int8]
Titles = Literal["prepend", "ignore"]

#: Why a candidate is dropped, in the order in which the rules are applied: the first that applies is counted.
RULES = (
    "rank",
    "held_out",
    "positive",
    "query",
    "max_score",
    "min_score",
    "relative_margin",
    "absolute_margin",
    "duplicate",
)
#: The verdict on a candidate that no rule drops.
KEPT = -1
#: The score of a positive that the search did not find: below that of every document that it did.
BELOW_ALL = float("-inf")
#: Digits of a score that count. Those after them change with the number of threads, and would change results with it.
DIGITS = 5


class Rules(Config):
    """What makes a found document a hard negative, and how many of them a query gets."""

    #: Negatives a query.
    negatives: PositiveInt = 4
    #: Places in the search's result that are looked at: [rank_start, rank_stop), 0 the nearest; the positive counts.
    rank_start: NonNegativeInt = 0
    rank_stop: PositiveInt = 100
    #: Dropped where score > this share of the positive's score; null for no such limit.
    relative_margin: float | None = Field(0.95, ge=0, le=1)
    #: Dropped where score > the positive's score less this.
    absolute_margin: float | None = Field(None, ge=0, le=2)
    #: Dropped where score is above, or below, these cosines.
    max_score: float | None = Field(None, ge=-1, le=1)
    min_score: float | None = Field(None, ge=-1, le=1)
    #: Of what is left: the best ranked, or a random choice that depends on the query and the seed alone.
    choose: Literal["top", "random"] = "top"
    seed: NonNegativeInt = 0
    #: Drop the documents (5 %, by a hash of the id) that retrieval is measured on and no training may see.
    exclude_held_out: bool = True

    @model_validator(mode="after")
    def _ranks_hold_enough(self) -> Self:
        if self.rank_stop - self.rank_start < self.negatives:
            raise ValueError(
                f"ranks {self.rank_start} to {self.rank_stop} hold fewer than negatives = {self.negatives}; "
                "raise rank_stop"
            )
        return self


@dataclass(frozen=True)
class Keys:
    """What the rules ask of a row, as numbers: a hash of its text as it is written, one of its text without the title,
    whether its document is held out, and a hash of the document's id; each [N] for an index, or [K] for the candidates
    of a query.
    """

    written: Hashes
    bare: Hashes
    held_out: npt.NDArray[np.bool_]
    document: Hashes

    def of(self, rows: Rows) -> Keys:
        """Those of some rows."""
        return Keys(self.written[rows], self.bare[rows], self.held_out[rows], self.document[rows])

    @classmethod
    def concatenate(cls, pieces: Sequence[Keys]) -> Keys:
        """One after the other; at least one piece."""
        return cls(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in KEYS})

    def save(self, folder: Path) -> None:
        """Write to a folder, for `load`."""
        save_arrays(folder, **{name: getattr(self, name) for name in KEYS})

    @classmethod
    def load(cls, folder: Path) -> Keys:
        """Map into memory what `save` wrote."""
        return cls(**load_arrays(folder, KEYS))


#: The names of what `Keys` holds.
KEYS = tuple(one.name for one in fields(Keys))


@dataclass(frozen=True)
class Positives:
    """What is known to answer each query of a set of pairs, whichever pair says it.

    text [N] and row [N]: the hash of a pair's positive text (0 where it has none), its row in the index (-1 where it is
    not there). order [N]: the pairs by query; start [N], stop [N]: where in `order` the pairs of this query lie.
    """

    text: Hashes
    row: Rows
    order: Rows
    start: Rows
    stop: Rows

    @classmethod
    def group(cls, query: Hashes, text: Hashes, row: Rows) -> Positives:
        """From one entry a pair: hashes of query and positive text, and the positive's row."""
        _, group, sizes = np.unique(query, return_inverse=True, return_counts=True)
        stops = np.cumsum(sizes).astype(np.int64)
        order = np.argsort(group, kind="stable").astype(np.int64)
        return cls(text, row, order, (stops - sizes)[group], stops[group])

    def of(self, pair: int) -> tuple[Hashes, Rows]:
        """Text hashes and rows of all positives of this pair's query."""
        same = self.order[self.start[pair] : self.stop[pair]]
        texts, rows = self.text[same], self.row[same]
        return texts[texts != 0], rows[rows != NO_ROW]

    @property
    def queries(self) -> int:
        """Number of different queries."""
        return len(np.unique(self.start))

    def save(self, folder: Path) -> None:
        """Write to a folder, for `load`."""
        save_arrays(folder, text=self.text, row=self.row, order=self.order, start=self.start, stop=self.stop)

    @classmethod
    def load(cls, folder: Path) -> Positives:
        """Map into memory what `save` wrote."""
        return cls(**load_arrays(folder, ("text", "row", "order", "start", "stop")))


def save_arrays(folder: Path, **arrays: npt.NDArray[Any]) -> None:
    """Each array as NAME.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def load_arrays(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The arrays of these names, mapped into memory."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}


def text_hash(text: str) -> int:
    """64 bits that are the same for texts that differ in case, white space or Unicode form alone; never 0.

    >>> text_hash("Join two  paths.") == text_hash("join two\\npaths.")
    True
    """
    normalised = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(normalised.encode(), digest_size=8).digest(), "big") or 1


def written_text(title: str | None, text: str, titles: Titles) -> str:
    """A document as a negative or a positive: with its title on a line of its own before it, as embed reads it."""
    return f"{title}\n{text}" if title and titles == "prepend" else text


def scan_documents(
    path: Path, start: int, stop: int, titles: Titles, wanted_ids: pa.Array
) -> tuple[Keys, npt.NDArray[np.int64], Rows]:
    """Read row groups [start, stop) of an index's documents.

    Returns their keys, and which of the documents asked for are among them: places in `wanted_ids` and rows of the
    index, of which a document that was embedded as windows has several.
    """
    from rayvec.indexing.upserts import key_of  # it loads FAISS, which whoever only states rules does not need

    written, bare, held_out = [], [], []
    document = [np.empty(0, np.uint64)]
    places, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with pq.ParquetFile(path, memory_map=True) as file:
        key = key_of(file.schema_arrow.names)
        names = [key, *(name for name in (TITLE, TEXT) if name in file.schema_arrow.names)]
        first = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for batch in file.iter_batches(row_groups=list(range(start, stop)), columns=names, use_threads=False):
            found = pc.index_in(batch.column(key), value_set=wanted_ids)
            here = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            places.append(found.drop_null().to_numpy(zero_copy_only=False).astype(np.int64))
            rows.append(here + first)
            titled = batch.column(TITLE).to_pylist() if TITLE in names else [None] * batch.num_rows
            document.append(hash_ids(batch.column(key))[:, 0])
            for id_, title, text in zip(
                batch.column(key).to_pylist(), titled, batch.column(TEXT).to_pylist(), strict=True
            ):
                bare.append(text_hash(text))
                whole = written_text(title, text, titles)
                written.append(bare[-1] if whole is text else text_hash(whole))
                held_out.append(is_held_out(id_))
            first += batch.num_rows
    hashes = np.array(written, np.uint64), np.array(bare, np.uint64)
    keys = Keys(*hashes, np.array(held_out, np.bool_), np.concatenate(document))
    return keys, np.concatenate(places), np.concatenate(rows)


def limits(rules: Rules, positive_score: float) -> tuple[float, float]:
    """The scores above which the relative and the absolute margin drop a candidate.

    A share of a negative score would lie above it; the share is therefore taken off its size.

    >>> [round(value, 2) for value in limits(Rules(absolute_margin=0.1), 0.8)]
    [0.76, 0.7]
    """
    if positive_score == BELOW_ALL:
        return BELOW_ALL, BELOW_ALL
    relative = None if rules.relative_margin is None else (1 - rules.relative_margin) * abs(positive_score)
    return tuple(  # type: ignore[return-value]
        np.inf if less is None else round(positive_score - less, DIGITS) for less in (relative, rules.absolute_margin)
    )


def judge(
    rules: Rules,
    scores: Scores,
    keys: Keys,
    *,
    query: int,
    positive_score: float,
    texts: Hashes,
    known: Hashes,
) -> Verdicts:
    """For each candidate [K], best first, the number in RULES of the first rule that drops it, or KEPT.

    scores: [K]. query: the query's own `text_hash`; texts, known: `text_hash`es and documents of all its positives. A
    positive_score of BELOW_ALL lets nothing pass a margin: if the search did not find the answer, all it found stands
    above it.
    """
    relative, absolute = limits(rules, positive_score)
    masks = {
        "rank": np.arange(len(scores)) < rules.rank_start,
        "held_out": keys.held_out & rules.exclude_held_out,
        "positive": np.isin(keys.document, known) | np.isin(keys.written, texts) | np.isin(keys.bare, texts),
        "query": (keys.written == query) | (keys.bare == query),
        "max_score": scores > (np.inf if rules.max_score is None else rules.max_score),
        "min_score": scores < (-np.inf if rules.min_score is None else rules.min_score),
        "relative_margin": (scores > relative) & (rules.relative_margin is not None),
        "absolute_margin": (scores > absolute) & (rules.absolute_margin is not None),
    }
    verdicts = np.full(len(scores), KEPT, np.int8)
    for number, rule in enumerate(RULES):
        # Duplicates come last: of equal texts, and of a document's windows, the best ranked that passes all other
        # rules stays.
        for mask in [masks[rule]] if rule in masks else _duplicates(keys, verdicts):
            verdicts[(verdicts == KEPT) & mask] = number
    return verdicts


def _duplicates(keys: Keys, verdicts: Verdicts) -> Iterator[npt.NDArray[np.bool_]]:
    """Windows of one document, then equal texts among those that are left."""
    yield _repeats(keys.document, verdicts == KEPT)
    yield _repeats(keys.written, verdicts == KEPT)


def _repeats(texts: Hashes, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    places = np.flatnonzero(among)
    _, first = np.unique(texts[places], return_index=True)
    repeats = among.copy()
    repeats[places[first]] = False
    return repeats


def choose(rules: Rules, verdicts: Verdicts, query: int) -> npt.NDArray[np.int64]:
    """Places [≤ negatives] of the candidates taken, best first; the same whatever other queries are there."""
    kept = np.flatnonzero(verdicts == KEPT)
    if rules.choose == "random" and len(kept) > rules.negatives:
        kept = np.sort(np.random.default_rng([rules.seed, query]).choice(kept, rules.negatives, replace=False))
    return kept[: rules.negatives]


def ordered(rows_K: Rows, scores_K: npt.NDArray[np.float32]) -> tuple[Rows, Scores]:
    """Candidates by score to so many DIGITS, then by row: an order in which the last bits of a score have no say."""
    scores: Scores = np.asarray(np.round(scores_K.astype(np.float64), DIGITS))
    order = np.lexsort((rows_K, -scores))
    return rows_K[order], scores[order]
