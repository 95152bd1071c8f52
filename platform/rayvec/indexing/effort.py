"""How hard to look, and at which rows: the parameters of one search. Given with the call, never set on the index.

Threads may so search one index with different efforts, and different rows dropped, at once.

Knows FAISS's search parameters. Knows no files and no rankings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayvec.indexing.layers import faiss
from rayvec.indexing.ranking import Rows

Selector = Any

#: A graph over centroids is searched at least so wide.
LEAST_WIDTH = 64
#: Lists probed, or the width of a search in a graph, at most.
MOST_WIDTH = 1 << 16


@dataclass(frozen=True)
class Effort:
    """nprobe: lists probed of an IVF; ef_search: width of the search in a graph; k_factor: answers refined, times k."""

    nprobe: int | None = None
    ef_search: int | None = None
    k_factor: int | None = None

    def widened(self, factor: float) -> Effort:
        """So many times as wide: where only one row in `factor` may be found, as many of those are looked at."""
        wider = {name: value and min(math.ceil(value * factor), MOST_WIDTH) for name, value in vars(self).items()}
        return Effort(**(wider | {"k_factor": self.k_factor}))


def keep_all_but(dropped: Rows, count: int) -> Selector:
    """A selector of rows [0, count) without the dropped ones; one bit a row."""
    kept = np.ones(count, bool)
    kept[dropped] = False
    return faiss.IDSelectorBitmap(np.packbits(kept, bitorder="little"))


def parameters(index: Any, effort: Effort, most_factor: float, selector: Selector | None = None) -> Any:
    """Search parameters for an index and all its layers. most_factor: the k_factor at which every row is refined."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        base = parameters(index.base_index, effort, most_factor, selector)
        factor = max(1.0, min(float(effort.k_factor or 1), most_factor))
        return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
    if isinstance(index, faiss.IndexPreTransform):
        inside = parameters(index.index, effort, most_factor, selector)
        return None if inside is None else faiss.SearchParametersPreTransform(index_params=inside)
    if hasattr(index, "nlist"):
        probe = faiss.SearchParametersIVF(
            nprobe=effort.nprobe or 1, quantizer_params=_quantizer_parameters(index, effort)
        )
        return _with(probe, selector)
    if hasattr(index, "hnsw"):
        return _with(faiss.SearchParametersHNSW(efSearch=effort.ef_search or 16), selector)
    return selected(selector)


def selected(selector: Selector | None) -> Any:
    """Parameters that say nothing but which rows; None when all are meant."""
    return None if selector is None else faiss.SearchParameters(sel=selector)


def _with(found: Any, selector: Selector | None) -> Any:
    if selector is not None:
        found.sel = selector
    return found


def _quantizer_parameters(index: Any, effort: Effort) -> Any:
    """A graph over the centroids must be searched at least as wide as the lists that are to be probed."""
    if not hasattr(faiss.downcast_index(index.quantizer), "hnsw"):
        return None
    return faiss.SearchParametersHNSW(efSearch=max(2 * (effort.nprobe or 1), LEAST_WIDTH))
