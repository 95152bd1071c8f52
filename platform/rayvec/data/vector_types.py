"""Vectors in the types in which they are stored, and as float32 again. Knows numpy and Arrow. Knows no file.

float32, float16: as they are. int8: each number as a multiple of the vector's own scale, which stands in a column
beside it, so a vector is read without any other. binary: one bit a number, 1 where it is above 0, eight to a byte, the
first in the highest bit: what `numpy.packbits` gives, FAISS's binary indices take, and sentence-transformers calls
ubinary.

Shapes: N vectors, D dimensions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayvec import schema
from rayvec.schema import VectorType

Floats = npt.NDArray[np.float32]
STEPS = 127  # of int8 on each side of 0: -128 would have no counterpart


def shortened(vectors_ND: Floats, dimensions: int | None, *, normalize: bool) -> Floats:
    """The first dimensions of each vector (Matryoshka), brought to length 1 if asked; a zero vector stays zero.

    >>> shortened(np.array([[3, 4, 9]], np.float32), 2, normalize=True).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    vectors_ND = vectors_ND[:, :dimensions]
    if not normalize:
        return vectors_ND
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.divide(vectors_ND, lengths_N1, out=np.zeros_like(vectors_ND), where=lengths_N1 > 0)


def to_columns(vectors_ND: npt.NDArray[np.floating], dtype: VectorType) -> dict[pa.Field, pa.Array]:
    """The columns that store these vectors: `embedding`, and for int8 `embedding_scale`."""
    field = schema.embedding_field(vectors_ND.shape[1], dtype)
    if dtype == "int8":
        values_ND, scales_N = quantized(vectors_ND)
        return {field: _lists(values_ND, field), schema.SCALE_FIELD: pa.array(scales_N)}
    if dtype == "binary":
        return {field: _lists(np.packbits(vectors_ND > 0, axis=1), field)}
    return {field: _lists(vectors_ND.astype(dtype, copy=False), field)}


def quantized(vectors_ND: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], Floats]:
    """Whole numbers from -127 to 127, int8 [N, D], and the scale [N] by which they give vectors of the same lengths.

    >>> values, scales = quantized(np.array([[0.6, -0.8, 0.0]]))
    >>> values.tolist(), round(float((values * scales[:, None])[0, 1]), 3)
    ([[95, -127, 0]], -0.801)
    """
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0)
    steps_ND = np.divide(vectors_ND * STEPS, largest_N1, out=np.zeros(vectors_ND.shape), where=largest_N1 > 0)
    values_ND = np.rint(steps_ND).astype(np.int8)
    lengths_N = np.linalg.norm(values_ND.astype(np.float64), axis=1)
    scales_N = np.divide(
        np.linalg.norm(vectors_ND, axis=1), lengths_N, out=np.zeros(len(lengths_N)), where=lengths_N > 0
    )
    return values_ND, scales_N.astype(np.float32)


def to_floats(column: pa.Array | pa.ChunkedArray, scales: pa.Array | pa.ChunkedArray | None = None) -> Floats:
    """Stored vectors as float32 [N, D]; float32 ones in one chunk are not copied. `scales` belong to int8.

    A binary vector becomes ±1/√D in each place: of length 1, so that inner products are cosines.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    values = (
        flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *flat])
    )
    values_ND = values.reshape(len(column), column.type.list_size)
    if values_ND.dtype == np.uint8:
        bits_ND = np.unpackbits(values_ND, axis=1)
        return (bits_ND * np.float32(2) - np.float32(1)) / np.float32(np.sqrt(max(1, bits_ND.shape[1])))
    if values_ND.dtype == np.int8:
        assert scales is not None, "int8 vectors come with their scales"
        return values_ND * np.asarray(scales.to_numpy(), np.float32)[:, None]
    return values_ND.astype(np.float32, copy=False)


def _lists(values_ND: npt.NDArray[np.generic], field: pa.Field) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values_ND).ravel(), field.type.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=field.type)
