"""What an index is made of: its layers, from the outside in. Only those that we build are let through.

An index file nests: refinement around a rotation around lists around a graph over their centroids. The first four bytes
name the outermost layer alone; here each one is named by the class that FAISS made of it.

Knows FAISS's index classes. Knows no files.

Shapes: N vectors, D dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import faiss as _faiss
import numpy as np

from rayvec.indexing.vectors import Vectors

#: FAISS without its own annotations, which know a part of it only.
faiss: Any = _faiss

#: The first four bytes of the kinds of file that we build; nothing else is handed to FAISS.
READABLE = {
    b"IxFI": "Flat", b"IxSQ": "SQ", b"Ixrq": "RaBitQ", b"Ixrr": "RaBitQ of several bits",
    b"IwFl": "IVF,Flat", b"IwSq": "IVF,SQ", b"IwPQ": "IVF,PQ", b"IwPf": "IVF,PQ fast scan",
    b"Iwrq": "IVF,RaBitQ", b"Iwrr": "IVF,RaBitQ of several bits", b"Iwrn": "IVF,RaBitQ fast scan",
    b"IHNf": "HNSW", b"IHNs": "HNSW,SQ", b"IxPT": "OPQ or RR", b"IxRF": "RFlat or Refine",
}  # fmt: skip

FLAT = ("IndexFlat", "IndexFlatIP", "IndexScalarQuantizer")
PLAIN = (*FLAT, "IndexRaBitQ")
LISTS = (
    "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan", "IndexIVFRaBitQ",
    "IndexIVFRaBitQFastScan",
)  # fmt: skip
GRAPHS = ("IndexHNSWFlat", "IndexHNSWSQ")
ROTATIONS = ("LinearTransform", "OPQMatrix", "RandomRotationMatrix")


def inner(index: Any) -> Any:
    """The index that is searched first, without what stands around it: refinement and rotation."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return inner(index.base_index)
    return inner(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def rotation(index: Any) -> Any | None:
    """What turns vectors before they are encoded, if there is anything."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return rotation(index.base_index)
    return faiss.downcast_VectorTransform(index.chain.at(0)) if isinstance(index, faiss.IndexPreTransform) else None


def refinement(index: Any) -> Any | None:
    """The index of stored vectors that the first answers are compared with, if there is one."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else None


def unrotated(index: Any, vectors_ND: Any) -> Any:
    """Vectors as they were before an index rotated them, if it does."""
    around = rotation(index)
    return vectors_ND if around is None else around.reverse_transform(vectors_ND)


def foreign(index: Any) -> str | None:
    """The name of the first layer that rayvec does not build in that place, or None when all are ours."""
    return next(_strangers(index), None)


def _strangers(index: Any) -> Iterator[str]:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        yield from _strangers_around(index.base_index)
        yield from _unless(index.refine_index, FLAT)
    else:
        yield from _strangers_around(index)


def _strangers_around(index: Any) -> Iterator[str]:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        yield from _strange_rotations(index)
        index = faiss.downcast_index(index.index)
    yield from _unless(index, (*PLAIN, *LISTS, *GRAPHS))
    if _name(index) in LISTS:
        yield from _unless(index.quantizer, ("IndexFlat", "IndexFlatIP", "IndexHNSWFlat"))
        yield from _strange_storage(index.quantizer)
    yield from _strange_storage(index)


def _strange_rotations(index: Any) -> Iterator[str]:
    chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    if len(chain) != 1:
        yield f"IndexPreTransform of {len(chain)} transforms"
    yield from (_name(transform) for transform in chain if _name(transform) not in ROTATIONS)


def _strange_storage(index: Any) -> Iterator[str]:
    index = faiss.downcast_index(index)
    if _name(index) in GRAPHS:
        yield from _unless(index.storage, FLAT)


def _unless(index: Any, known: tuple[str, ...]) -> Iterator[str]:
    index = faiss.downcast_index(index)
    if _name(index) not in known:
        yield _name(index)
    elif index.metric_type != faiss.METRIC_INNER_PRODUCT:
        yield f"{_name(index)} of another metric"


def _name(layer: Any) -> str:
    return type(layer).__name__


def train(index: Any, vectors_ND: Vectors) -> None:
    """Train the layers one by one: as FAISS does, but the same on any number of threads."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        train(index.base_index, vectors_ND)
        train(index.refine_index, vectors_ND)
    elif isinstance(index, faiss.IndexPreTransform):
        with one_thread():
            rotation(index).train(vectors_ND)  # type: ignore[union-attr]
        train(index.index, _rotated(index, vectors_ND))
    elif not index.is_trained:
        index.train(vectors_ND)
    index.is_trained = True


def add(index: Any, vectors_ND: Vectors, put: Callable[[Any, Vectors], None]) -> None:
    """Add vectors layer by layer, the same on any number of threads; put: adds to the index that is searched first."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        add(index.base_index, vectors_ND, put)
        index.refine_index.add(vectors_ND)
        index.ntotal = index.refine_index.ntotal
    elif isinstance(index, faiss.IndexPreTransform):
        add(index.index, _rotated(index, vectors_ND), put)
        index.ntotal = inner(index).ntotal
    else:
        put(index, vectors_ND)


def _rotated(index: Any, vectors_ND: Vectors) -> Vectors:
    # A matrix product by several threads rounds otherwise than by one; a list's centroid follows from it.
    with one_thread():
        return np.ascontiguousarray(rotation(index).apply(vectors_ND))  # type: ignore[union-attr]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """FAISS's calls from this thread take one thread for the length of the block."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def merge(into: Any, other: Any) -> None:
    """Move the vectors of `other` behind those of `into`, layer by layer; both must come from one trained index."""
    into, other = faiss.downcast_index(into), faiss.downcast_index(other)
    if isinstance(into, faiss.IndexRefine):
        merge(into.base_index, other.base_index)
        merge(into.refine_index, other.refine_index)
        into.ntotal = faiss.downcast_index(into.base_index).ntotal
    elif isinstance(into, faiss.IndexPreTransform):
        merge(into.index, other.index)
        into.ntotal = faiss.downcast_index(into.index).ntotal
    else:
        # Rows are numbered through: only lists store their numbers, and add what comes before.
        into.merge_from(other, into.ntotal if hasattr(into, "nlist") else 0)


def of_lists(lists: Any, places: Sequence[tuple[int, int]]) -> Vectors:
    """Vectors of an index with lists, each by its list and its place in it, as they are stored [N, D]."""
    if _name(lists) == "IndexIVFPQFastScan":
        return _of_fast_scan(lists, places)
    vectors_ND = np.empty((len(places), lists.d), np.float32)
    for vector_D, (number, place) in zip(vectors_ND, places, strict=True):
        lists.reconstruct_from_offset(number, place, faiss.swig_ptr(vector_D))
    return vectors_ND


def _of_fast_scan(lists: Any, places: Sequence[tuple[int, int]]) -> Vectors:
    """FAISS 1.15's own way ends the process: here the codes are taken out of their blocks. They have no residuals."""
    blocks = faiss.downcast_InvertedLists(lists.invlists)
    packer = blocks.packer
    codes = np.empty((len(places), packer.code_size), np.uint8)
    for code, (number, place) in zip(codes, places, strict=True):
        count = -(-blocks.list_size(number) // packer.nvec)
        packed = faiss.rev_swig_ptr(blocks.get_codes(number), count * packer.block_size)
        code[:] = packer.unpack_1(packed.reshape(count, packer.block_size), place)
    assert not lists.by_residual, "of inner products, product codes are of the vectors themselves"
    return lists.pq.decode(codes)
