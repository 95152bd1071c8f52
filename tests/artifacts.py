"""Small embeddings artifacts and indices, made without Ray and without an encoder: what the tests of indexing read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import storage, uris
from rayvec.data.vector_types import to_columns
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import documents, drafts, pca, shards, spec
from rayvec.indexing.lexical import Lexical
from rayvec.indexing.searcher import DOCUMENTS, LEXICAL, TRANSFORM
from rayvec.indexing.segments import Segment
from rayvec.indexing.vectors import Vectors, unit
from rayvec.schema import PARENT_ID
from rayvec.storage import JsonObject

TEXTS = (
    "os.path.join(a, *p): join two or more path components, inserting a separator as needed",
    "list.sort(*, key=None, reverse=False): sort the list in place",
    "socket.create_connection(address): open a network socket and connect to an address",
    "json.dumps(obj): serialize an object to a JSON formatted string",
)


#: How the documents of an index were embedded: the defaults of the embed job.
EMBEDDED = {
    "instruction": None, "title": "prepend", "long": "truncate", "max_length": None, "dimensions": None,
    "normalize": False, "dtype": "float32", "precision": "auto", "keep_text": True, "unit_rows": 4096,
}  # fmt: skip


def fingerprint(dim: int, weights: str = "test") -> Fingerprint:
    return Fingerprint(
        weights=weights, tokenizer="t", attention="none", pooling="mean", prompts="none", max_length=32,
        normalize=True, dim=dim,
    )  # fmt: skip


def random_vectors(count: int, dim: int, seed: int = 0, clusters: int = 16) -> Vectors:
    """Vectors of length 1 around some centres: close to none, as real embeddings are."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, dim))
    values = centres[generator.integers(clusters, size=count)] + 0.7 * generator.standard_normal((count, dim))
    return unit(values.astype(np.float32))


def texts_for(count: int) -> list[str]:
    return [f"{TEXTS[row % len(TEXTS)]}, document number{row}" for row in range(count)]


def table_of(
    vectors: Vectors, texts: Sequence[str], start: int = 0, dtype: str = "float32", ids: Sequence[str] | None = None
) -> pa.Table:
    count = len(vectors)
    ids = [f"doc-{start + i}" for i in range(count)] if ids is None else ids
    columns: dict[pa.Field, Any] = {
        pa.field("id", pa.string(), nullable=False): pa.array(list(ids), pa.string()),
        pa.field("title", pa.string()): pa.array([None if i % 5 == 4 else f"title {start + i}" for i in range(count)]),
        pa.field("text", pa.string(), nullable=False): pa.array(list(texts)),
        pa.field("line", pa.int32()): pa.array(range(start, start + count), pa.int32()),
        **to_columns(vectors, dtype),  # type: ignore[arg-type]
        pa.field("n_tokens", pa.int32(), nullable=False): pa.array([1] * count, pa.int32()),
        pa.field("truncated", pa.bool_(), nullable=False): pa.array([False] * count),
    }
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(list(columns)))


def write_embeddings(
    folder: Path,
    vectors: Vectors,
    texts: Sequence[str],
    parts: int = 3,
    dtype: str = "float32",
    weights: str = "test",
    row_group: int = 100,
    ids: Sequence[str] | None = None,
    parents: Sequence[str] | None = None,
    drop: str = "",
    first_row: int = 0,
    made_by: Fingerprint | None = None,
    extra: Mapping[str, pa.Array] | None = None,
) -> Path:
    """An embeddings folder in the layout of rayvec.data.embeddings; ids are doc-0, doc-1, … unless they are given.

    parents: the documents that the rows are windows of; drop: a column to leave out; first_row: what titles count from;
    extra: payload columns beside `line`.
    """
    bounds = np.linspace(0, len(vectors), parts + 1).astype(int)
    entries = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        buffer = io.BytesIO()
        named = None if ids is None else ids[start:stop]
        table = table_of(vectors[start:stop], texts[start:stop], first_row + int(start), dtype, named)
        if parents is not None:
            table = table.append_column(PARENT_ID, pa.array(parents[start:stop], pa.string()))
        if drop:
            table = table.drop_columns([drop])
        for name, values in (extra or {}).items():
            table = table.append_column(name, values[start:stop])
        pq.write_table(
            table, buffer, row_group_size=row_group, write_page_checksum=True, use_dictionary=False, compression="none"
        )
        digest = storage.sha256_bytes(buffer.getvalue())
        name = f"data/{number:05d}-{digest[:8]}.parquet"
        storage.write_bytes(uris.join(folder, name), buffer.getvalue())
        entries.append({"unit": f"{number:05d}", "file": name, "rows": int(stop - start), "bytes": buffer.tell(), "sha256": digest})  # fmt: skip  # noqa: E501
    payload = [name for name in ("line", PARENT_ID) if name != drop and (name == "line" or parents is not None)]
    payload += extra or {}
    made_by = made_by or fingerprint(int(vectors.shape[1]), weights)
    manifest = {
        "format": "rayvec.embeddings/1", "version": 1, "count": len(vectors), "dim": int(vectors.shape[1]),
        "dtype": dtype, "fingerprint": made_by.model_dump(), "encoder": "test",
        "payload": payload, "plan_sha256": "0" * 64, "parts": entries, "totals": {"rows": len(vectors)},
    }  # fmt: skip
    storage.write_json(folder / "manifests" / "v1.json", manifest)
    storage.write_bytes(folder / "CURRENT", b"v1\n")
    return folder


def write_index(
    output: Path,
    vectors: Vectors,
    texts: Sequence[str],
    factory: str = "Flat",
    pieces: int = 1,
    dimensions: int | None = None,
    search: dict[str, int] | None = None,
    made_by: Fingerprint | None = None,
    encoder: str = "test",
    ids: Sequence[str] | None = None,
    extra: Mapping[str, pa.Array] | None = None,
    lexical: bool = True,
) -> JsonObject:
    """Publish a version built by the pipeline's own functions, in this process; extra: columns beside `line`."""
    projection = pca.fit(pca.moments([vectors]), dimensions, normalize=True) if dimensions else None
    indexed = projection(vectors) if projection else vectors
    bounds = np.linspace(0, len(vectors), pieces + 1).astype(int).tolist()
    trained = shards.train(spec.choose(factory, len(vectors), indexed.shape[1]), indexed.shape[1], indexed, seed=0)
    table = table_of(vectors, texts, ids=ids).select(["id", "title", "text", "line"])
    for name, values in (extra or {}).items():
        table = table.append_column(name, values)
    with drafts.new_version(output) as draft:
        entries = []
        for number, (start, stop) in enumerate(pairwise(bounds)):
            name = f"shard-{number:05d}.faiss"
            rows = shards.fill(trained, [indexed[start:stop]], draft.folder / name)
            entries.append({"file": name, "start": start, "rows": rows})
        documents.write(table.to_batches(), table.schema, len(vectors), draft.folder / DOCUMENTS)
        if lexical:
            Lexical.build(texts).save(draft.folder / LEXICAL)
        if projection:
            pca.save(projection, draft.folder / TRANSFORM)
        segment = Segment("", 0, len(vectors), (), 0, lexical=lexical)
        return draft.commit(
            {
                "segments": [segment.to_json()],
                "dropped": 0,
                "update": None,
                "payload": ["line", *(extra or {})],
                "dtype": "float32",
                "embedded": EMBEDDED,
                "proof": {"recall": 1.0, "target": 0.95},
                "count": len(vectors),
                "dim": int(vectors.shape[1]),
                "dim_index": int(indexed.shape[1]),
                "normalize": True,
                "transform": {"normalize": True} if projection else None,
                "shards": entries,
                "search": search or {},
                "lexical": {"columns": ["text"], "stemmer": "english"} if lexical else None,
                "factory": factory,
                "encoder": encoder,
                "fingerprint": (made_by or fingerprint(int(vectors.shape[1]))).model_dump(),
            }
        )
