"""Vectors as OpenAI's answer has them: at once where they are few, in pieces where writing them would hold up others.

Knows vectors and the answer's schema. Knows no encoder and no HTTP.

Shapes: B texts, D dimensions.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayvec.serving.problems import invalid
from rayvec.serving.schemas import Embedding, EmbeddingAnswer

#: So many numbers are written while nothing else is answered: some ten milliseconds. All texts that a request may have,
#: of 4,096 dimensions, would take seconds.
AT_ONCE = 131_072
#: Where in the written answer the vectors go.
_PLACE = '"data":[]'


@dataclass(frozen=True)
class Embedded:
    """An answer without its vectors, and the vectors: float32 [B, D]."""

    answer: EmbeddingAnswer
    vectors_BD: np.ndarray
    encoding_format: Literal["float", "base64"]

    @property
    def is_long(self) -> bool:
        """Whether it is to be sent in pieces."""
        return self.vectors_BD.size > AT_ONCE

    def whole(self) -> str:
        """The answer as JSON."""
        return self.answer.model_copy(update={"data": self._rows(0, len(self.vectors_BD))}).model_dump_json()

    async def pieces(self) -> AsyncIterator[str]:
        """The same in pieces, between which the event loop goes on with what else there is."""
        before, place, after = self.answer.model_dump_json().partition(_PLACE)
        assert place, "an answer without vectors"
        step = max(1, AT_ONCE // self.vectors_BD.shape[1])
        for start in range(0, len(self.vectors_BD), step):
            rows = self._rows(start, start + step)
            yield (f'{before}"data":[' if start == 0 else ",") + ",".join(row.model_dump_json() for row in rows)
            await asyncio.sleep(0)
        yield f"]{after}"

    def _rows(self, start: int, stop: int) -> list[Embedding]:
        as_json = _to_base64 if self.encoding_format == "base64" else _to_floats
        some = self.vectors_BD[start:stop]
        return [Embedding(index=row, embedding=as_json(vector_D)) for row, vector_D in enumerate(some, start)]


def shortened(vectors_BD: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The leading dimensions, brought to length 1 again, as OpenAI does. Raises Problem 422 when there are fewer."""
    dim = vectors_BD.shape[1]
    if dimensions is None or dimensions == dim:
        return vectors_BD
    if dimensions > dim:
        raise invalid(f"dimensions: {dimensions} asked, but this model's vectors have {dim}", "dimensions")
    head = vectors_BD[:, :dimensions]
    norms = np.linalg.norm(head, axis=1, keepdims=True)
    shorter: np.ndarray = head / np.where(norms > 0, norms, 1.0)
    return shorter


def _to_base64(vector_D: np.ndarray) -> str:
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


def _to_floats(vector_D: np.ndarray) -> list[float]:
    return [float(x) for x in vector_D.tolist()]
