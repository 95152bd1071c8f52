"""What a write asks, and what became of it: what passes between the gateway and the writer. Knows plain values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rayvec.serving.schemas import Document


@dataclass(frozen=True)
class Change:
    """What one request asks: documents to put in, and ids to take out."""

    documents: Sequence[Document] = ()
    ids: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Documents that it is about."""
        return len(self.documents) + len(self.ids)


@dataclass
class Written:
    """What became of a change, and the version that holds it. seconds: of the stages of that version."""

    version: str = ""
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    unknown_ids: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    n_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
