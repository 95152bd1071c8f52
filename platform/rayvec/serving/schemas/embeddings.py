"""Embeddings, as OpenAI's clients ask for them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from rayvec.serving.schemas.base import (
    Answer,
    Instruction,
    Request,
    TextsOrTokens,
    Usage,
)


class EmbeddingRequest(Request):
    """OpenAI's request, `input_type` and `instruction`. Token ids are those of this model's own tokenizer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "hash:64", "input": ["a text", "another"]}]})

    input: TextsOrTokens = Field(description="a text, a list of up to 2048, or token ids: a list, or a list of lists")
    model: str = Field(max_length=256, description="as `GET /v1/models` names it")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="keep this many leading dimensions, normalised")
    user: str | None = Field(None, max_length=512, description="accepted for OpenAI's clients, and ignored")
    input_type: Literal["query", "document"] | None = Field(
        None, description="read the texts after the instruction that the service has for queries, or for documents"
    )
    instruction: Instruction | None = Field(None, description="read the texts after this one")

    def texts_or_ids(self) -> tuple[list[str], list[list[int]] | None]:
        """The input as a list of texts, or as a list of token ids."""
        value: Any = self.input
        rows = value if isinstance(value, list) else [value]
        if isinstance(rows[0], str):
            return rows, None
        return [], rows if isinstance(rows[0], list) else [rows]


class Embedding(Answer):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(Answer):
    """OpenAI's answer, the index version that these vectors can be searched against, and which inputs were cut."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    index_version: str
    truncated: list[int]
