"""Proof of an index: recall against exact search, the least effort that reaches the target, and the time a query takes.

Queries are vectors of the data itself, which training did not see (a query's own row counts for nothing), and beside
them vectors that the user gives.

Knows shards and rankings. Knows no parts and no Ray.

Shapes: Q queries, W places of the wide exact ranking, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayvec.errors import VerificationError
from rayvec.indexing import shards
from rayvec.indexing.ranking import Ranking, Rows
from rayvec.indexing.shards import Effort, Shard
from rayvec.indexing.vectors import Vectors

K = 10
QUERIES = 256
#: Exact neighbours kept a query: more than K, so that all that tie with the K-th are known.
WIDE = 64
TIMED_QUERIES = 100
#: Queries of an update's proof, and numbers that each is compared with at most: 8 GB of float32, some shards of many.
UPDATE_QUERIES = 128
UPDATE_VALUES = 2_000_000_000
#: A graph searched wider than this is slower than reading everything.
MOST_EF_SEARCH = 4096
#: Answers refined a place asked for, at most: 640 stored vectors for ten answers.
MOST_K_FACTOR = 64
#: How many times as wide the first search is while it is found out how many answers are to be refined.
WIDER = 4
#: Scores this close are equal: float32 sums of the same products differ by as much from one order to another.
TIE = 1e-5


@dataclass(frozen=True)
class Probe:
    """Queries [Q, D], their true nearest [Q, W], and the row that each of them is of the data, -1 for none [Q]."""

    queries: Vectors
    truth: Ranking
    own: Rows

    def recall(self, parts: list[Shard], effort: Effort) -> float:
        """Recall@K of a search of these shards with this effort."""
        count = sum(shard.count for shard in parts)
        return recall(shards.search(parts, self.queries, min(K + 1, count), effort), self.truth, self.own)


def recall(found: Ranking, truth: Ranking, own: Rows, k: int = K) -> float:
    """The mean share of the true k nearest among the first k found; whatever ties with the k-th counts as true.

    found: at least k + 1 places a query, since the query itself may take one; own: the query's own row [Q].
    """
    shares = [_one(found.hits(i), truth.hits(i), int(own[i]), k) for i in range(len(own))]
    return float(np.mean(shares)) if shares else 1.0


def _one(found: list[tuple[int, float]], truth: list[tuple[int, float]], own: int, k: int) -> float:
    true = [(row, score) for row, score in truth if row != own]
    if not true:
        return 1.0
    k = min(k, len(true))
    good = {row for row, score in true if score >= true[k - 1][1] - TIE}
    return sum(row in good for row in [row for row, _ in found if row != own][:k]) / k


def tune(measure: Callable[[int], float], most: int, target: float) -> tuple[int, float]:
    """The least effort in 1…most whose recall reaches the target, and that recall.

    Doubles the effort until it is enough, then bisects: dear efforts are not tried where cheap ones do.

    Raises VerificationError when even the most effort does not reach it.

    >>> tune(lambda effort: effort / 100, most=128, target=0.42)
    (42, 0.42)
    """
    low, high = 0, 1
    while (reached := measure(high)) < target:
        if high == most:
            raise VerificationError(
                f"recall@{K} is {reached:.3f} at most, under the target {target}: nothing was published. Choose a "
                "finer codec (Flat instead of SQ8, RaBitQ4 instead of RaBitQ), refinement (,RFlat or ,Refine(SQfp16)), "
                "more links, or lower recall_target"
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        value = measure(middle)
        if value >= target:
            high, reached = middle, value
        else:
            low = middle
    return high, reached


def tune_refinement(measure: Callable[[int], float], target: float, most: int = MOST_K_FACTOR) -> int:
    """The least power of two of answers refined, a place asked for, that leaves room above the target.

    measure gives the recall where the first search is wide enough. Half of what refining more could still win must be
    there: else the first search had to be wider than reading a few more stored vectors costs.

    Raises VerificationError when refining as many as we allow does not reach the target.
    """
    best = measure(most)
    if best < target:
        tune(lambda _: best, 1, target)
    factor = 1
    while factor < most and measure(factor) < (target + best) / 2:
        factor *= 2
    return factor


def prove(parts: Sequence[Shard], probes: Sequence[Probe], target: float) -> dict[str, Any]:
    """Tune the shards until every probe reaches the target, and measure them.

    Returns the chosen search parameters, the recall of the first probe, `recall_of_queries` of the second if there is
    one, and milliseconds a query. What is refined is tuned first, then the first search.

    Raises VerificationError when the target cannot be reached.
    """
    several = list(parts)
    first = several[0]
    most = max(1, *(shard.most_effort for shard in several))
    if first.effort(1).ef_search:
        most = min(most, MOST_EF_SEARCH)

    def measure(value: int, factor: int | None = None) -> float:
        return min(probe.recall(several, first.effort(value, factor)) for probe in probes)

    factor = None
    if first.is_refined:
        # At a few times the effort that is enough if all is refined: searching everything would tell the same, dearly.
        least, _ = tune(lambda value: measure(value, MOST_K_FACTOR), most, target)
        wide = min(most, WIDER * least)
        factor = tune_refinement(lambda factor: measure(wide, factor), target)
    value, _ = tune(lambda value: measure(value, factor), most, target)
    effort = first.effort(value, factor)
    recalls = [probe.recall(several, effort) for probe in probes]
    count = sum(shard.count for shard in several)
    return {
        "search": {name: number for name, number in vars(effort).items() if number is not None},
        "recall": recalls[0],
        "recall_of_queries": recalls[1] if len(recalls) > 1 else None,
        "latency_ms": latency(several, probes[-1].queries, effort, min(K, count)),
    }


def prove_again(
    parts: Sequence[Shard], dropped: Sequence[Rows | None], dim: int, search: dict[str, int], target: float, seed: int
) -> dict[str, Any]:
    """Measure an updated index by itself: what its search finds, against comparing with every vector as it is stored.

    Vectors that did not change lose nothing more by how they are stored than the build's proof says; what an update can
    cost is that probing or a graph has to find its way round dropped rows, and that is measured, without reading the
    embeddings again. Of an index larger than UPDATE_VALUES some shards are taken, drawn by the seed. If the target is
    missed, the search is made wider until it is reached. Where every vector is compared anyway there is nothing to
    measure, and no recall is given.

    Raises VerificationError when no effort reaches the target.
    """
    pairs = _drawn(parts, dropped, dim, seed)
    chosen, gone = [shard for shard, _ in pairs], [rows for _, rows in pairs]
    inexact = [shard for shard in chosen if shard.most_effort]
    if not inexact:
        return {"search": search}
    queries, own = _stored_queries(pairs, seed)
    live = sum(shard.live(rows) for shard, rows in pairs)
    wide = [shard.exhaustive(queries, WIDE, rows) for shard, rows in pairs]
    truth = shards.merge_rankings(wide, WIDE)

    def measure(value: int) -> float:
        effort = inexact[0].effort(value, search.get("k_factor"))
        return recall(shards.search(chosen, queries, min(K + 1, live), effort, gone), truth, own)

    value = search.get("nprobe") or search.get("ef_search") or 1
    reached = measure(value)
    if reached < target:
        most = max(shard.most_effort for shard in inexact)
        value, reached = tune(measure, min(most, MOST_EF_SEARCH) if inexact[0].effort(1).ef_search else most, target)
    effort = inexact[0].effort(value, search.get("k_factor"))
    chosen_search = {name: number for name, number in vars(effort).items() if number is not None}
    times = latency(chosen, queries, effort, min(K, live), gone)
    return {"search": chosen_search, "recall": reached, "latency_ms": times, "queries": len(own)}


def _drawn(
    parts: Sequence[Shard], dropped: Sequence[Rows | None], dim: int, seed: int
) -> list[tuple[Shard, Rows | None]]:
    """Shards with a live row, in their order: those of deltas, and so many others as UPDATE_VALUES allows."""
    pairs = [pair for pair in zip(parts, dropped, strict=True) if pair[0].live(pair[1])]
    left, taken = UPDATE_VALUES, set[int]()
    for number in np.random.default_rng(seed).permutation(len(pairs)).tolist():
        values = pairs[number][0].count * dim
        if not taken or values <= left:
            taken.add(number)
            left -= values
    exact = {number for number, (shard, _) in enumerate(pairs) if not shard.most_effort}
    return [pairs[number] for number in sorted(taken | exact)]


def _stored_queries(pairs: Sequence[tuple[Shard, Rows | None]], seed: int) -> tuple[Vectors, Rows]:
    """Live vectors drawn at random, as they are stored [Q, D], and their rows."""
    generator = np.random.default_rng(seed)
    counts = np.array([shard.count for shard, _ in pairs])
    shares = generator.multinomial(UPDATE_QUERIES, counts / counts.sum())
    vectors, rows = [], []
    for (shard, gone), share in zip(pairs, shares.tolist(), strict=True):
        places = np.sort(generator.choice(shard.count, min(share, shard.count), replace=False))
        if len(places):
            found, values = shard.stored(places)
            live = ~np.isin(found - shard.start, [] if gone is None else gone)
            vectors.append(values[live])
            rows.append(found[live])
    return np.ascontiguousarray(np.concatenate(vectors)), np.concatenate(rows)


def latency(
    parts: list[Shard], queries_QD: Vectors, effort: Effort, k: int, dropped: Sequence[Rows | None] | None = None
) -> dict[str, float]:
    """Milliseconds of a search for one query on one core, its median and 95th percentile."""
    shards.use_threads(1)
    times = []
    for query in queries_QD[:TIMED_QUERIES]:
        start = time.perf_counter()
        shards.search(parts, query[None], k, effort, dropped)
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50": round(float(np.median(times)), 4), "p95": round(float(np.quantile(times, 0.95)), 4)}


def resident(
    read: Callable[[], list[Shard]], files: Sequence[Path], queries_QD: Vectors, search: dict[str, int]
) -> int:
    """Bytes of memory that the shards in these files take, once they are read and these queries were searched.

    Pages of mapped files count as soon as they are touched; the system may take them back.
    """
    names = {str(path) for path in files}
    before = _resident_bytes(names)
    parts = read()
    shards.search(parts, queries_QD, min(K, sum(shard.count for shard in parts)), Effort(**search))
    return max(0, _resident_bytes(names) - before)


def _resident_bytes(names: set[str]) -> int:
    """Bytes in memory: this process's own, and those it maps of the files of these names."""
    total, wanted = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            wanted = "Rss:" if len(words) == 6 and words[5] in names else "Anonymous:"
        elif words[0] == wanted:
            total += int(words[1]) * 1024
    return total
