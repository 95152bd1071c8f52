"""Vectors as they are stored: what is lost, what plain readers find, what comes back."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.vector_types import quantized, shortened, to_columns, to_floats

VECTORS = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32)


def test_an_int8_vector_is_off_by_half_a_step_at_most_and_as_long_as_before() -> None:
    values, scales = quantized(VECTORS)
    back = values * scales[:, None]
    steps = np.abs(VECTORS).max(axis=1) / 127
    # Half a step of rounding, and the little by which the scale restores the length.
    assert (np.abs(back - VECTORS).max(axis=1) < 0.75 * steps).all()
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), np.linalg.norm(VECTORS, axis=1), rtol=1e-6)
    assert (np.abs(values.astype(int)).max(axis=1) == 127).all()


def test_a_zero_vector_stays_zero() -> None:
    values, scales = quantized(np.zeros((1, 8), np.float32))
    assert not values.any() and not scales.any()


def test_each_int8_vector_has_a_scale_of_its_own() -> None:
    small = quantized(VECTORS * np.float32(1e-4))
    np.testing.assert_array_equal(small[0], quantized(VECTORS)[0])


def test_binary_is_a_bit_a_dimension_the_first_one_highest() -> None:
    vector = np.array([[0.1, -0.1, -0.1, 0.0, 0.2, -1, -1, 3]], np.float32)
    [(field, column)] = to_columns(vector, "binary").items()
    assert field.type == pa.list_(pa.field("item", pa.uint8(), nullable=False), 1)
    assert column.to_pylist() == [[0b10001001]]
    np.testing.assert_allclose(to_floats(column), np.array([[1, -1, -1, -1, 1, -1, -1, 1]]) / np.sqrt(8), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 24), ("float16", 24), ("int8", 24), ("binary", 3)])
def test_parquet_gives_plain_lists(dtype: str, size: int) -> None:
    columns = to_columns(VECTORS, dtype)  # type: ignore[arg-type]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(list(columns.values()), schema=pa.schema(list(columns))), file)
    table = pq.read_table(file)
    assert [len(values) for values in table["embedding"].to_pylist()] == [size] * 50
    assert table.schema.names == (["embedding", "embedding_scale"] if dtype == "int8" else ["embedding"])


def test_float32_is_not_copied() -> None:
    [column] = to_columns(VECTORS, "float32").values()
    assert np.shares_memory(to_floats(column), to_floats(column))


def test_chunks_and_none_are_read() -> None:
    [column] = to_columns(VECTORS, "float16").values()
    np.testing.assert_array_equal(to_floats(pa.chunked_array([column[:20], column[20:]])), to_floats(column))
    assert to_floats(pa.chunked_array([], column.type)).shape == (0, 24)


def test_fewer_dimensions_are_the_first_ones() -> None:
    cut = shortened(VECTORS, 5, normalize=False)
    np.testing.assert_array_equal(cut, VECTORS[:, :5])
    np.testing.assert_allclose(np.linalg.norm(shortened(VECTORS, 5, normalize=True), axis=1), 1, atol=1e-6)
