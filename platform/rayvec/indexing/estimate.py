"""What an index will cost, before it is built: bytes on disk, bytes in memory when searched, CPU-seconds of the build.

Sizes follow from FAISS's file format and are within 10 % of the file (tested for every form).
CPU-seconds are the arithmetic of each step over a rate that is measured on this machine at the time (`measure_rate`).
Fitted on one core to fourteen builds (20,000 and 60,000 vectors, 256 and 768 dimensions, every kind; .05 to 16 s):
between .75 and 1.55 times what they took; on a busy machine with cold caches down to .6. Reading parts is little of it.

Knows forms and arithmetic. Knows no FAISS.

Shapes: n vectors, d dimensions.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import numpy as np

from rayvec.indexing.forms import KMEANS_ROUNDS, SAMPLES_A_CENTROID, Spec

#: Bytes of a vector's place in a graph beside its links: its level and where its links begin.
GRAPH_BYTES = 12
ID_BYTES = 8
BLOCK = 32
REFINE_BYTES = {"": 0, "Flat": 4, "SQfp16": 2, "SQ8": 1}

#: k-means takes so many times its products: finding the nearest, and moving the centroids.
KMEANS_SLOWDOWN = 1.3
OPQ_ROUNDS = 50
PQ_ROUNDS = 25
#: Product codes learn from so many vectors a codeword (FAISS's own bound), and compare them one by one.
PQ_SAMPLES = 256
PQ_SLOWDOWN = 3.0
#: A round of OPQ: of a vector's share for each sub-quantizer, for each pair of dimensions, and of the SVD.
OPQ_BLOCK, OPQ_PAIR, OPQ_SVD = 30_000, 6, 250
#: Distances that a graph computes to add a vector, times log2(n), whatever its links; and to find a centroid.
DISTANCES_A_DOUBLING = 130
DISTANCES_A_LOOKUP = 400
#: They are computed one by one, out of order, where a GEMM streams: so much for each value, and for each distance.
GRAPH_VALUE, GRAPH_DISTANCE = 20, 4000
#: Seconds-worth of GEMM work that encoding one value takes, in floating point operations.
ENCODING = {"Flat": 2, "SQfp16": 8, "SQbf16": 8, "SQ8": 30, "SQ6": 40, "SQ4": 40}
#: The search for the best scale of multi-bit RaBitQ codes is by far the dearest part of such a build.
ENCODING_RABITQ = {1: 60, 2: 4000}
ENCODING_RABITQ_MORE = 10_000
#: Reading, checking and normalising a value of a part, twice in all.
READING = 120
RATE_SIZE = 512
RATE_SECONDS = 0.2


@dataclass(frozen=True)
class Estimate:
    """bytes: of the files; resident: of them what searching keeps in memory; cpu_seconds: of training and filling."""

    bytes: int
    resident: int
    cpu_seconds: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For a manifest or a report."""
        return asdict(self)


def estimate(spec: Spec, count: int, dim: int, rate: float | None = None, shards: int = 1) -> Estimate:
    """The cost of an index. rate: floating point operations a second and core; without it no time is told."""
    refined = REFINE_BYTES[spec.refine] * count * dim + (8 * dim if spec.refine == "SQ8" else 0) * shards
    searched = math.ceil(_codes(spec, count, dim, shards) + shards * _fixed(spec, dim))
    seconds = None if rate is None else round(operations(spec, count, dim) / rate, 6)
    # The vectors that answers are refined with are mapped, and a search touches a few hundred of them.
    return Estimate(searched + refined, searched, seconds)


def _codes(spec: Spec, count: int, dim: int, shards: int) -> float:
    """Codes, ids and links: what grows with the number of vectors."""
    code = spec.code_bytes(dim)
    if spec.kind == "flat":
        return count * code
    if spec.kind == "hnsw":
        return count * (code + _graph_bytes(spec.links))
    lists = shards * spec.centroids
    # Fast scan rounds each list up to whole blocks of codes: half a block is lost on average.
    padding = lists * BLOCK / 2 if spec.fast_scan else 0
    return (count + padding) * code + count * ID_BYTES


def _graph_bytes(links: int) -> float:
    """Twice the links at the bottom; a share of 1/links of the vectors stands on each floor above, with its links."""
    return 4 * (2 * links + links / (links - 1)) + GRAPH_BYTES


def _fixed(spec: Spec, dim: int) -> float:
    """What a file holds whatever the number of vectors: rotation, centroids and their graph, codebooks."""
    inner = spec.dim_codes(dim)
    rotation = 4 * inner * dim if spec.rotation else 0
    graph = spec.centroids * _graph_bytes(spec.links) if spec.kind == "ivf" and spec.links else 0
    lists = spec.centroids * (4 * inner + 8)
    return rotation + lists + graph + _codebook(spec, inner) + 200


def _codebook(spec: Spec, inner: int) -> float:
    if spec.subquantizers:
        return 4 * inner * (1 << spec.bits)
    return 8 * inner if spec.codec in ("SQ8", "SQ6", "SQ4") else 4 * inner if spec.rabitq else 0


def operations(spec: Spec, count: int, dim: int) -> float:
    """Floating point operations of the whole build, as if all ran at the rate of a matrix product."""
    inner, sample = spec.dim_codes(dim), spec.samples(count, dim)
    return (
        READING * (count + sample) * dim
        + _rotating(spec, count, sample, dim)
        + _clustering(spec, sample, inner)
        + _assigning(spec, count, inner)
        + _encoding(spec, count, inner)
        + (_graph(count, dim) if spec.kind == "hnsw" else 0)
    )


def _rotating(spec: Spec, count: int, sample: int, dim: int) -> float:
    once = 2 * dim * spec.dim_codes(dim)
    if not spec.rotation:
        return 0
    if spec.rotation == "RR":
        return once * (count + sample)
    rounds = sample * (OPQ_BLOCK * spec.blocks + OPQ_PAIR * dim * spec.dim_codes(dim)) + OPQ_SVD * dim**3
    return once * (count + sample) + OPQ_ROUNDS * rounds


def _clustering(spec: Spec, sample: int, inner: int) -> float:
    clustered = min(sample, spec.centroids * SAMPLES_A_CENTROID)
    lists = KMEANS_SLOWDOWN * KMEANS_ROUNDS * 2 * clustered * spec.centroids * inner
    words = 1 << spec.bits
    seen = min(sample, PQ_SAMPLES * words)
    codes = PQ_SLOWDOWN * PQ_ROUNDS * 2 * seen * words * inner if spec.subquantizers else 0
    graph = _graph(spec.centroids, inner) if spec.kind == "ivf" and spec.links else 0
    return lists + codes + graph


def _assigning(spec: Spec, count: int, inner: int) -> float:
    if spec.kind != "ivf":
        return 0
    if not spec.links:
        return 2 * count * spec.centroids * inner
    return count * min(DISTANCES_A_LOOKUP, spec.centroids) * (GRAPH_VALUE * inner + GRAPH_DISTANCE)


def _encoding(spec: Spec, count: int, inner: int) -> float:
    values = count * inner
    if spec.subquantizers:
        return 4 * values * (1 << spec.bits)
    if spec.rabitq:
        return values * ENCODING_RABITQ.get(spec.bits, ENCODING_RABITQ_MORE)
    return values * ENCODING[spec.codec]


def _graph(count: int, dim: int) -> float:
    distances = min(DISTANCES_A_DOUBLING * math.log2(count + 1), count)
    return count * distances * (GRAPH_VALUE * dim + GRAPH_DISTANCE)


def measure_rate() -> float:
    """Floating point operations a second of one core, by a matrix product for a fifth of a second of CPU time."""
    a = np.random.default_rng(0).standard_normal((RATE_SIZE, RATE_SIZE)).astype(np.float32)
    _ = a @ a
    done, start = 0, time.process_time()
    while time.process_time() - start < RATE_SECONDS:
        _ = a @ a
        done += 1
    return 2 * RATE_SIZE**3 * done / (time.process_time() - start)
