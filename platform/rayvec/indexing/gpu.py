"""FAISS on GPUs: clustering, and finding each vector's list, where faiss-gpu is installed and sees a GPU.

Everything else of a build, and every search, is done on the CPU: what is written is the same kind of file. Sums on a
GPU round otherwise, so its centroids are not to the bit those of a CPU; recall is proved after the build either way.

Knows faiss-gpu. Knows no files and no Ray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayvec.indexing.layers import faiss, inner
from rayvec.indexing.vectors import Vectors


def is_supported() -> bool:
    """Whether this FAISS was built for GPUs, whatever this machine has."""
    return hasattr(faiss, "StandardGpuResources")


def count() -> int:
    """GPUs that FAISS can use in this process; 0 with faiss-cpu."""
    return int(faiss.get_num_gpus())


def on_all(index: Any) -> Any:
    """A copy of a flat index on every GPU, or the index itself where there is none."""
    return faiss.index_cpu_to_all_gpus(index) if count() else index


def cluster_on_gpus(lists: Any) -> Any | None:
    """Let an untrained IVF find its centroids on the GPUs; without any it stays as it is.

    Returns the index that does it: FAISS holds a bare pointer, so it must live until the training is over.
    """
    if not count():
        return None
    found = on_all(faiss.IndexFlatIP(lists.d))
    lists.clustering_index = found
    return found


def assigner(index: Any) -> Any | None:
    """The centroids of a trained index as an exact index on the GPUs; None where the CPU should assign.

    Fast scan packs its codes while it assigns, and takes no lists from outside.
    """
    lists = inner(index)
    if not count() or not takes_assigned(lists):
        return None
    return on_all(centroids(lists))


def takes_assigned(lists: Any) -> bool:
    """Whether vectors can be added to lists that were found beforehand."""
    return hasattr(lists, "nlist") and "FastScan" not in type(lists).__name__


def centroids(lists: Any) -> Any:
    """The centroids of a trained IVF as an exact index."""
    flat = faiss.IndexFlatIP(lists.d)
    flat.add(faiss.downcast_index(lists.quantizer).reconstruct_n(0, lists.nlist))
    return flat


def add(lists: Any, vectors_ND: Vectors, nearest: Any) -> None:
    """Add vectors to a trained IVF, each to the list that `nearest`, an index of centroids, finds for it."""
    found = np.ascontiguousarray(nearest.search(vectors_ND, 1)[1][:, 0])
    lists.add_core(len(vectors_ND), faiss.swig_ptr(vectors_ND), None, faiss.swig_ptr(found))
