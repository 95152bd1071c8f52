"""The forms of index that are tried against each other, and how each grows.

Knows factory strings and arithmetic. Knows no FAISS: a configuration can be checked where FAISS is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rayvec.indexing import spec

#: Forms that are tried unless others are asked for: a row each, as a template of `named`.
FACTORIES = (
    "Flat",
    "SQfp16",
    "SQ8",
    "HNSW32",
    "HNSW32,SQ8",
    "IVF{centroids},Flat",
    "IVF{centroids},SQ8",
    "IVF{centroids},PQ{half}x4fs,Refine(SQ8)",
    "RR{dim},IVF{centroids},RaBitQ4,Refine(SQ8)",
    "RR{dim},IVF{centroids},RaBitQ,Refine(SQ8)",
)


def named(template: str, count: int, dim: int) -> str:
    """The factory string of a template for so many vectors of so many dimensions.

    >>> named("IVF{centroids},SQ8", 1_000_000, 512)
    'IVF4000,SQ8'
    """
    words = {"centroids": spec.usual_centroids(count), "dim": dim, "half": dim // 2}
    for word, value in words.items():
        template = template.replace(f"{{{word}}}", str(value))
    return template


#: How the time of a query grows with the number of vectors, by kind of search: a scan of all; four times √n lists to
#: choose from, of which as many are read, each √n long; a graph's depth. Rough, and meant to be.
GROWTH: dict[str, Callable[[float], float]] = {"ivf": math.sqrt, "hnsw": lambda count: math.log2(max(count, 2.0))}


def slowdown(kind: str, sampled: int, count: int) -> float:
    """How many times as long a query takes among `count` vectors as among `sampled`, about.

    >>> slowdown("ivf", 10_000, 1_000_000), slowdown("flat", 10_000, 1_000_000)
    (10.0, 100.0)
    """
    growth = GROWTH.get(kind, float)
    return growth(count) / growth(sampled)
