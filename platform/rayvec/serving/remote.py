"""The service's parts in other processes: calls through Serve's handles, and Ray's errors as HTTP answers.

All are idempotent, so a request whose replica died is sent once more to another. Knows Ray Serve's handles and errors.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rayvec.serving.listing import Described
from rayvec.serving.problems import Problem, overloaded, unavailable
from rayvec.serving.services import Encoded, EncoderFacts, Fetched, Found, IndexFacts, Reached

if TYPE_CHECKING:
    import numpy as np
    from ray.serve.handle import DeploymentHandle

    from rayvec.indexing.maps import Map
    from rayvec.indexing.ranking import Ranking
    from rayvec.modeling.tokens import TokenBatch
    from rayvec.modeling.windows import Windows
    from rayvec.serving.changes import Change, Written
    from rayvec.serving.search import Options

ATTEMPTS = 2
#: Ray's ways to say that a replica, its node, or the answer that lay in its memory is gone.
GONE = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError)


class RemoteEncoder:
    """An EncoderService behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        """Vectors of texts."""
        return await _call(self._handle.encode, texts, instruction)

    async def encode_ids(self, ids: list[list[int]]) -> Encoded:
        """Vectors of texts that are tokenized already."""
        return await _call(self._handle.encode_ids, ids)

    async def encode_tokens(self, batch: TokenBatch, windows: Windows | None = None) -> np.ndarray:
        """Vectors of documents that are tokenized already."""
        return await _call(self._handle.encode_tokens, batch, windows)

    async def facts(self) -> EncoderFacts:
        """What is loaded."""
        return await _call(self._handle.facts)


class RemoteRetriever:
    """A RetrieverService behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def search(
        self, queries: list[str], vectors_QD: np.ndarray | None, options: Options, fingerprint: str | None = None
    ) -> Found:
        """The hits of each query."""
        return await _call(self._handle.search, queries, vectors_QD, options, fingerprint)

    async def rerank(self, query: str, texts: list[str]) -> list[float]:
        """One score a text."""
        return await _call(self._handle.rerank, query, texts)

    async def document(self, id_: str) -> Fetched:
        """One document."""
        return await _call(self._handle.document, id_)

    async def facts(self) -> IndexFacts:
        """What is loaded."""
        return await _call(self._handle.facts)

    async def reach(self, version: str) -> Reached:
        """Serve a version, or a later one, as soon as it can be."""
        return await _call(self._handle.reach, version)

    async def describe(self) -> Described:
        """What there is to know of the index."""
        return await _call(self._handle.describe)

    async def map(self) -> Map:
        """The map of the index."""
        return await _call(self._handle.map)


class RemotePart:
    """A PartService behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def nearest(self, version: str, queries_QR: np.ndarray, k: int, filter_: str | None) -> Ranking:
        """The nearest of its own rows."""
        return await _call(self._handle.nearest, version, queries_QR, k, filter_)

    async def vectors(self, version: str, rows_N: np.ndarray) -> np.ndarray:
        """Vectors of its own rows."""
        return await _call(self._handle.vectors, version, rows_N)


class RemoteWriter:
    """A WriterService behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def write(self, change: Change) -> Written:
        """Make a change, and answer when it is on disk. One that was made already changes nothing when sent again."""
        return await _call(self._handle.write, change)


async def _call(method: Any, *arguments: Any) -> Any:
    """Call, again if the replica died on the way; raise Problem for what the client should hear of."""
    for _ in range(ATTEMPTS):
        try:
            return await _answer(method.remote(*arguments))
        except BackPressureError:
            raise overloaded() from None
        except DeploymentUnavailableError:
            raise unavailable("a part of the service is being started again") from None
        except RayTaskError as error:
            if isinstance(error.cause, Problem):
                raise error.cause from None
            if not isinstance(error.cause, GONE):
                raise
        except GONE:
            continue
    raise unavailable("a part of the service stopped while it worked on this request")


async def _answer(response: Any) -> Any:
    """What the other process answers. Where we no longer wait (a deadline), it is told to leave off, too."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # Serve passes on only that a client went away
        raise
