"""What a service tells of itself: its model, its index, whether it is ready, and what went wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayvec.serving.config import Mode
from rayvec.serving.schemas.base import (
    Answer,
)


class Column(Answer):
    """A column of the documents: its Arrow type, and whether a filter may test it."""

    name: str
    type: str
    filterable: bool


class Proof(Answer):
    """The recall that was measured when the version was made, and how many rows have changed since it was."""

    recall: float
    target: float
    queries: int | None = None
    unproved_rows: int = 0


class ServedIndex(Answer):
    """The index that is served, and the version that answers.

    `advice`: why it should be compacted, if it should; `refused`: a newer version that is not served, and why.
    """

    id: str
    object: Literal["index"] = "index"
    created: int
    version: str
    writable: bool
    documents: int
    deleted_rows: int
    segments: int
    dimensions: int
    dimensions_indexed: int
    metric: str
    kind: str
    search: dict[str, int]
    modes: list[Mode]
    columns: list[Column]
    model: str
    fingerprint: str
    proof: Proof
    advice: str | None = None
    refused: str | None = None


class Indexes(Answer):
    """The indices that are served: one."""

    object: Literal["list"] = "list"
    data: list[ServedIndex]


class Model(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["rayvec"] = "rayvec"
    dimensions: int
    max_input_tokens: int
    fingerprint: str
    index_version: str
    instructions: dict[str, str] = Field({}, description="what is read before a query, and before a document")


class Models(Answer):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Ready(Answer):
    """What answers now. `refused` tells of a newer version of the index that is not served, and why."""

    status: Literal["ready"] = "ready"
    model: str
    index_version: str
    documents: int
    modes: list[Mode]
    mode: Mode = Field(description="of a search that names none")
    refused: str | None = None
    missing_parts: list[int] = Field([], description="parts of the vectors that did not answer a moment ago")
    recall: float | None = Field(None, description="share of true neighbours found, of a few vectors searched lately")


class ErrorBody(Answer):
    """What went wrong, and with which field."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(Answer):
    """OpenAI's error shape."""

    error: ErrorBody
