"""Writes: documents put in and taken out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from rayvec.serving.schemas.base import (
    MAX_CHARACTERS,
    MAX_COLUMNS,
    MAX_DELETES,
    MAX_DOCUMENTS,
    Answer,
    DocumentId,
    Request,
    Text,
    Usage,
    encodable,
)


class Document(Request):
    """A document to be put in; the same shape that hits have."""

    id: DocumentId
    title: Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(encodable)] | None = None
    text: Text
    payload: dict[str, Any] = Field(
        default={}, max_length=MAX_COLUMNS, description="values of the index's other columns; those left out are null"
    )


def _different(documents: list[Document]) -> list[Document]:
    ids = set()
    for place, document in enumerate(documents):
        if document.id in ids:
            raise ValueError(f"document {place} has the id of an earlier one; send each id once")
        ids.add(document.id)
    return documents


class WriteRequest(Request):
    """Base of what changes the index."""

    wait: bool = Field(False, description="answer only when every search finds it (`live`), not as soon as it is kept")


class UpsertRequest(WriteRequest):
    """Documents to put in; one whose id is there replaces it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"documents": [{"id": "note-1", "title": "Paths", "text": "join two paths"}], "wait": True}]
        }
    )

    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS), AfterValidator(_different)]


class DeleteRequest(WriteRequest):
    """Ids of documents to take out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["note-1", "note-2"]}]})

    ids: list[DocumentId] = Field(min_length=1, max_length=MAX_DELETES)


class DocumentAnswer(Answer):
    """One document of the version named."""

    object: Literal["document"] = "document"
    index_version: str
    id: str
    title: str | None = None
    text: str | None = None
    payload: dict[str, Any] | None = None


class WriteAnswer(Answer):
    """What a write did. It is on disk: no kill of any process loses it.

    `index_version` is the version that holds it, or the one that held it already; `live`: every search finds it now.
    `unchanged` documents were there already, word for word. `truncated` names those of which the encoder saw only the
    beginning.
    """

    object: Literal["write"] = "write"
    index_version: str
    live: bool
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    unknown_ids: list[str] = Field([])
    truncated: list[str] = Field([])
    usage: Usage
    total_ms: float
