"""Column names and Arrow schemas that the stages agree on.

Legend for shapes throughout the project: B batch, T tokens, D hidden or embedding dimension, N documents, Q queries.
Knows column names and types. Knows no file format, no model, no Ray.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

ID = "id"
TITLE = "title"
TEXT = "text"
EMBEDDING = "embedding"
N_TOKENS = "n_tokens"
TRUNCATED = "truncated"

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

VectorType = Literal["float32", "float16"]


def embedding_field(dim: int, dtype: VectorType = "float32") -> pa.Field:
    """The vector column: a plain `FixedSizeList<float32|float16>[dim]`, which DuckDB, Polars, pandas, Lance read."""
    item = pa.float32() if dtype == "float32" else pa.float16()
    return pa.field(EMBEDDING, pa.list_(pa.field("item", item, nullable=False), dim), nullable=False)


#: Columns of an embeddings part that rayvec writes itself; a payload column may not take one of these names.
RESERVED = frozenset({ID, TITLE, TEXT, EMBEDDING, N_TOKENS, TRUNCATED})
