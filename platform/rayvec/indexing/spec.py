"""Which FAISS index: "auto" picks one by count, dimensions, memory, latency and recall; an explicit string is checked.

Knows forms, estimates and the table behind "auto". Knows no FAISS: a configuration can be checked without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rayvec.errors import UserError
from rayvec.indexing.estimate import estimate
from rayvec.indexing.forms import (
    AUTO,
    EXAMPLES,
    FORMS,
    MOST_SAMPLE_BYTES,
    Kind,
    Spec,
    check_shape,
    parse,
    usual_centroids,
)

__all__ = [
    "AUTO", "EXAMPLES", "FORMS", "MOST_SAMPLE_BYTES", "Kind", "Spec", "check_factory", "choose", "human_bytes",
    "parse_bytes", "usual_centroids",
]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One row of the table behind "auto": up to so many bytes of vectors this form, which can reach this recall."""

    up_to_bytes: float
    template: str
    reaches: float
    why: str


#: In order: the first that fits the size, the budget, the latency and the recall is taken.
#:
#: Measured on one core (AVX-512): recall@10 at the most effort | bytes | ms a query where recall is .95, or its most.
#: 60,000 × 256 in 400 clusters: Flat 1.000 | 61 MB | 3.4; IVF512,Flat 1.000 | 62 MB | .04; IVF512_HNSW32,SQ8 .987
#: | 16.5 MB | .05; HNSW32 1.000 | 78 MB | .09 and three times the build; RR256,IVF512,RaBitQ4 .908 | 10 MB | .07, where
#: SQ4 has .764. RaBitQ of one bit has .526 alone, and refined by SQ8 .974 | 3.7 MB + 15 MB mapped | .05; PQ64x4fs has
#: .315 alone, and refined by whole vectors .967 | 3.3 MB + 61 MB mapped | .06; OPQ32 gains it nothing for 84 s of
#: training. So RaBitQ, which learns nothing, comes before PQ and OPQ; its bits are what the budget gives, and it is
#: always refined. Its fast scan (RaBitQfs) was slower for one query at a time.
#: 60,000 × 1024: IVF512,Flat 1.000 | 248 MB | .18; IVF512_HNSW32,SQ8 .981 | 64 MB | .12; RR1024,IVF512,RaBitQ,
#: Refine(SQ8) .982 | 15 MB + 61 MB mapped | .23; the same with RaBitQ4 .983 | 39 MB + 61 MB mapped | .34.
#: 40,000 × 256 hashed words of text, which cluster worse: IVF512,Flat 1.000 | 42 MB | .33; IVF512_HNSW32,SQ8 .959 |
#: 11 MB | .6; RR256,IVF512,RaBitQ,Refine(SQ8) .986 | 3 MB + 10 MB mapped | .28; RaBitQ4 .988 | 7 MB + 10 MB | .28.
#: A core reads about 25 GB/s: 64 MB are 3 ms, and no list is so much faster that an inexact answer is worth it.
AUTO_TABLE: tuple[Rule, ...] = (
    Rule(64e6, "Flat", 1.0, "{size} of vectors are searched exactly in about {scan} ms a query on one core"),
    Rule(4e9, "IVF{lists},Flat", 1.0, "{size} of vectors are too many to scan for each query; {lists} ≈ 4·√n lists"),
    Rule(math.inf, "IVF{lists}{graph},SQfp16", 1.0, "{size} of vectors: 16-bit codes take half of the memory"),
    Rule(math.inf, "IVF{lists}{graph},SQ8", 0.955, "{size} of vectors: 8-bit codes take a quarter of the memory"),
    *(
        Rule(
            math.inf,
            f"RR{{dim}},IVF{{lists}}{{graph}},RaBitQ{bits},Refine({{stored}})",
            1.0,
            f"{{size}} of vectors: {bits or 1}-bit RaBitQ codes stay in memory, and their best are compared again with "
            "{stored} vectors on disk",
        )
        for bits in ("4", "2", "")
    ),
)
#: Targets above these want 16-bit codes: alone, and to refine with.
SQ8_REACHES = 0.955
REFINED_SQ8_REACHES = 0.97
SCAN_BYTES_A_MS = 25e6
#: The share of the lists that is probed for recall .95 (measured: 1 % in clusters, 12 % of hashed text).
PROBED = 0.05
#: Reading the stored vectors of a hundred rows, one query, where they lie on an SSD and not in memory.
REFINE_MS = 2.0
CENTROIDS_FOR_A_GRAPH = 2048
UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "T": 10**12,
         "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def choose(
    factory: str,
    count: int,
    dim: int,
    *,
    memory_budget: int | None = None,
    latency_ms: float | None = None,
    recall_target: float = 0.95,
) -> Spec:
    """The index for so many vectors of this dimension.

    memory_budget: bytes that searching may keep in memory, vectors for refinement aside, which are mapped from disk;
    latency_ms: of one query on one core, as estimated here.

    Raises UserError when the factory string is not one that we build, when it cannot be built from so few vectors, or
    when nothing fits the budget and the latency.
    """
    if count < 1:
        raise UserError("there are no vectors to index: the embeddings hold 0 rows; embed some documents first")
    if factory != AUTO:
        return _explicit(factory, count, dim, memory_budget)
    found = list(_candidates(count, dim, recall_target, memory_budget, latency_ms))
    fitting = [spec for spec in found if _resident(spec, count, dim) <= (memory_budget or math.inf)]
    if not fitting:
        _refuse_budget(found, count, dim, memory_budget or 0)
    quick = [spec for spec in fitting if expected_ms(spec, count, dim) <= (latency_ms or math.inf)]
    if not quick:
        best = min(fitting, key=lambda spec: expected_ms(spec, count, dim))
        raise UserError(
            f"latency_ms = {latency_ms}: the fastest index here, {best.factory}, is expected to take "
            f"{expected_ms(best, count, dim):.2g} ms a query on one core; raise latency_ms, or set dimensions=N for PCA"
        )
    return _with_limits(quick[0], count, dim, memory_budget, latency_ms)


def check_factory(factory: str) -> str:
    """The factory string, if it is one of the forms that we build. Raises UserError otherwise."""
    if factory != AUTO:
        parse(factory)
    return factory


def expected_ms(spec: Spec, count: int, dim: int) -> float:
    """About how long a query takes on one core, by the bytes it reads."""
    codes = count * spec.code_bytes(dim)
    if spec.kind == "flat":
        return codes / SCAN_BYTES_A_MS
    # A graph over n centroids compares with a few hundred of them, whatever n.
    centroids = min(spec.centroids, 1000) if spec.links else spec.centroids
    return (PROBED * codes + 4 * dim * centroids) / SCAN_BYTES_A_MS + (REFINE_MS if spec.refine else 0)


def _candidates(
    count: int, dim: int, recall_target: float, memory_budget: int | None, latency_ms: float | None
) -> Iterator[Spec]:
    """The rows of the table that can reach the recall and are meant for so many vectors, in order."""
    lists = usual_centroids(count)
    size = count * dim * 4
    words = {
        "size": human_bytes(size), "scan": f"{size / SCAN_BYTES_A_MS:.1f}", "lists": lists, "dim": dim,
        "graph": "_HNSW32" if lists >= CENTROIDS_FOR_A_GRAPH else "",
        "stored": "SQ8" if recall_target < REFINED_SQ8_REACHES else "SQfp16",
    }  # fmt: skip
    for rule in AUTO_TABLE:
        spec = parse(rule.template.format(**words), rule.why.format(**words))
        # A latency says how long a scan may take, and a budget how much memory lists may: the table's own limits go.
        limited = latency_ms is None if spec.kind == "flat" else memory_budget is None
        meant = rule.reaches >= recall_target and not (limited and size > rule.up_to_bytes)
        if meant and (memory_budget is not None or _is_usual(spec, recall_target)):
            yield spec


def _is_usual(spec: Spec, recall_target: float) -> bool:
    """Whether an index is taken without a budget: not one that lies on disk in part, nor one larger than it need be."""
    return not spec.refine and (spec.codec != "SQfp16" or recall_target > SQ8_REACHES)


def _with_limits(spec: Spec, count: int, dim: int, memory_budget: int | None, latency_ms: float | None) -> Spec:
    said = []
    if memory_budget is None and latency_ms is None:
        return spec
    if memory_budget is not None:
        said.append(f"{human_bytes(_resident(spec, count, dim))} of a budget of {human_bytes(memory_budget)}")
    if latency_ms is not None:
        said.append(f"about {expected_ms(spec, count, dim):.2g} ms a query of {latency_ms:g}")
    return replace(spec, why=f"{spec.why} ({', '.join(said)})")


def _refuse_budget(found: list[Spec], count: int, dim: int, budget: int) -> None:
    least = min(found, key=lambda spec: _resident(spec, count, dim))
    needed = _resident(least, count, dim)
    fewer = max(1, int(dim * budget / needed))
    raise UserError(
        f"memory_budget = {human_bytes(budget)}: the smallest index here, {least.factory}, needs {human_bytes(needed)};"
        f" raise the budget, or set dimensions=N for PCA (about {fewer} would fit)"
    )


def _explicit(factory: str, count: int, dim: int, memory_budget: int | None) -> Spec:
    spec = parse(factory, "asked for")
    check_shape(spec, count, dim)
    needed = _resident(spec, count, dim)
    if memory_budget is not None and needed > memory_budget:
        raise UserError(
            f"factory {factory!r} needs {human_bytes(needed)} in memory, over memory_budget = "
            f"{human_bytes(memory_budget)}; set factory=auto, or raise the budget"
        )
    return spec


def _resident(spec: Spec, count: int, dim: int) -> int:
    return estimate(spec, count, dim).resident


def parse_bytes(text: str | int) -> int:
    """A number of bytes, as people write it.

    >>> parse_bytes("4GB"), parse_bytes("1.5 MiB")
    (4000000000, 1572864)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in UNITS or not (size := int(float(match[1]) * UNITS[match[2].upper()])):
        raise UserError(f'{text!r} is not a number of bytes; write 4000000000, "4GB" or "512MiB"')
    return size


def human_bytes(size: float) -> str:
    """Bytes for people.

    >>> human_bytes(61_000_000)
    '61 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
