"""Column names and Arrow schemas that the stages agree on.

Legend for shapes throughout the project: B batch, T tokens, D hidden or embedding dimension, N documents, Q queries.
Knows column names, types, and what they say of each other. Knows no file format, no model, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

ID = "id"
TITLE = "title"
TEXT = "text"
EMBEDDING = "embedding"
N_TOKENS = "n_tokens"
TRUNCATED = "truncated"

#: A row that is a window of a document: the document's id, the window's number from 0, and its characters
#: [char_start, char_end) of the document's text (code points). The row's id is "<parent_id>#<window>".
PARENT_ID = "parent_id"
WINDOW = "window"
CHAR_START = "char_start"
CHAR_END = "char_end"
WINDOW_FIELDS = (
    pa.field(PARENT_ID, pa.string(), nullable=False),
    pa.field(WINDOW, pa.int32(), nullable=False),
    pa.field(CHAR_START, pa.int64(), nullable=False),
    pa.field(CHAR_END, pa.int64(), nullable=False),
)

#: A document on its way through the platform. Payload columns stand beside these, under their own names.
DOCUMENT = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(TITLE, pa.string()),
        pa.field(TEXT, pa.string(), nullable=False),
    ]
)

#: Flat token ids of a document (special tokens in place), and which of them are pooled: [pool_start, pool_end).
TOKENS = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("pool_start", pa.int32(), nullable=False),
        pa.field("pool_end", pa.int32(), nullable=False),
        pa.field(N_TOKENS, pa.int32(), nullable=False),
        pa.field(TRUNCATED, pa.bool_(), nullable=False),
    ]
)

#: What becomes of a document that is longer than the encoder reads at once. `truncate`: its end is left out, and the
#: row says so. `windows`: a row for each of its windows. `mean`: one row, the mean of its windows' vectors weighted by
#: their tokens. `late`: a row for each window, pooled from a pass that has read as much as the encoder can (late
#: chunking).
Long = Literal["truncate", "windows", "mean", "late"]
#: How vectors are stored; see data.vector_types.
VectorType = Literal["float32", "float16", "int8", "binary"]
_ITEMS = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
#: Beside int8 vectors: what each number of the row's vector is a multiple of.
SCALE_FIELD = pa.field("embedding_scale", pa.float32(), nullable=False)


def embedding_field(dim: int, dtype: VectorType = "float32") -> pa.Field:
    """The vector column: a plain `FixedSizeList<float32|float16|int8>[dim]`, which DuckDB, Polars, pandas, Lance read.

    Of binary vectors it holds bytes of eight dimensions each: `FixedSizeList<uint8>[dim / 8]`.
    """
    size = dim // 8 if dtype == "binary" else dim
    return pa.field(EMBEDDING, pa.list_(pa.field("item", _ITEMS[dtype], nullable=False), size), nullable=False)


#: Columns of an embeddings part that rayvec writes itself; a payload column may not take one of these names.
RESERVED = frozenset({ID, TITLE, TEXT, EMBEDDING, SCALE_FIELD.name, N_TOKENS, TRUNCATED}).union(
    field.name for field in WINDOW_FIELDS
)


def window_ids(parents: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The ids of windows. Two are equal only where document and number are, whatever the documents' ids are.

    >>> window_ids(["a", "a#0"], [0, 1])
    ['a#0', 'a#0#1']
    """
    return [f"{parent}#{number}" for parent, number in zip(parents, numbers, strict=True)]
