"""The part that writes: takes the writes that wait, makes one version of them, and answers each when it is on disk.

A plain class; `rayvec.serving.app` makes a deployment of one copy of it. Texts go to the encoder that is served, a few
at a time, so that queries come in between. Knows how versions are committed, and the encoder by its protocol. Knows no
HTTP but for the errors of a client, and no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rayvec.errors import ConcurrentWriterError, MismatchError, RayvecError, StorageError, UserError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Windows, select
from rayvec.serving.batcher import Batcher
from rayvec.serving.problems import Problem, unavailable
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from rayvec.serving.changes import Change, Written
    from rayvec.serving.commits import Committer

_LOG = logging.getLogger(__name__)

#: Documents of the writes that go into one version together.
DOCUMENTS_AT_ONCE = 2048
#: Tokens of documents that the encoder is sent at once: a query waits for no more.
TOKENS_AT_ONCE = 4096
#: Seconds after which to try again where a job is writing the index.
BUSY_SECONDS = 5
#: A version of many documents takes minutes where the encoder is slow; one that takes longer than this is stuck.
STUCK_SECONDS = 900


class DocumentEncoder(Protocol):
    """What the writer asks of a QueryEncoder, here or in another process."""

    async def encode_tokens(self, batch: TokenBatch, windows: Windows | None = None) -> np.ndarray:
        """Vectors of documents that are tokenized already."""


class WriterService(Protocol):
    """What the gateway asks of a Writer, here or in another process."""

    async def write(self, change: Change) -> Written:
        """Make a change, and answer when it is on disk."""


def settings_of(uri: str) -> JsonObject:
    """How the documents of the live version were embedded. Raises UserError when neither it nor its source says."""
    from rayvec.indexing import segments, versions

    folder = versions.version_folder(uri)
    manifest = versions.read_manifest(folder)
    settings: JsonObject | None = manifest.get("embedded")
    if settings is None:
        sources = segments.segments_of(manifest)[0].sources
        settings = sources[0].open(folder).manifest.get("settings") if sources else None
    if settings is None:
        raise UserError(
            f"{uri} does not say how its documents were embedded, so that new ones could be too; build it again with "
            "python -m jobs.index, or leave out writable"
        )
    return {name: value for name, value in settings.items() if name != "source"}


class Writer:
    """Makes versions of an index, one at a time, of as many writes as wait. Raises UserError, MismatchError.

    reference: of the encoder, whose tokenizer is loaded here; its weights are where `encoder` is.
    """

    def __init__(
        self, uri: str, encoder: DocumentEncoder, reference: str, expected: Fingerprint, tokens: int = TOKENS_AT_ONCE
    ) -> None:
        self._uri = uri
        self._encoder = encoder
        self._reference = reference
        self._expected = expected
        self._tokens = tokens
        self._committer = self._open()
        self._batcher = Batcher(self._commit, DOCUMENTS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _open(self) -> Committer:
        from rayvec.encoding.direct import work_of
        from rayvec.modeling.encoder import load_tokenizer_only
        from rayvec.serving.commits import Committer

        settings = settings_of(self._uri)
        tokenizer = load_tokenizer_only(self._reference)
        self._expected.require(tokenizer.fingerprint, mine="index", theirs="encoder")
        work = work_of(settings, self._reference, self._expected)
        if work.max_length is not None:
            tokenizer = tokenizer.reading(work.max_length)
        return Committer(self._uri, work, settings, tokenizer, _Sent(self))

    async def write(self, change: Change) -> Written:
        """Make a change, and answer when it is on disk. Raises Problem."""
        self._loop = asyncio.get_running_loop()
        outcome = await self._batcher.run(change, change.size)
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    def _commit(self, changes: Sequence[Change]) -> Sequence[Written | Problem]:
        try:
            return self._committer.commit(changes)
        except Problem as problem:  # of the encoder: it has no room, or is started again
            return [problem] * len(changes)
        except RayvecError as error:
            _LOG.warning("a write to %s failed: %s", self._uri, error)
            return [_problem(error)] * len(changes)

    def encode(self, batch: TokenBatch, windows: Windows | None) -> np.ndarray:
        """Called by the thread that commits: the vectors, by the encoder that is served."""
        assert self._loop is not None, "a write is under way"
        return asyncio.run_coroutine_threadsafe(self._encode(batch, windows), self._loop).result()

    async def _encode(self, batch: TokenBatch, windows: Windows | None) -> np.ndarray:
        if windows is None:
            pieces = [
                await self._encoder.encode_tokens(batch.select(rows)) for rows in _pieces(batch.lengths, self._tokens)
            ]
            return np.concatenate(pieces)
        lengths = np.bincount(windows.text, windows.lengths).astype(np.int64)
        pieces = [
            await self._encoder.encode_tokens(*select(batch, windows, rows)) for rows in _pieces(lengths, self._tokens)
        ]
        return np.concatenate(pieces)

    @property
    def dim(self) -> int:
        """Dimensions of the encoder's vectors."""
        return self._expected.dim

    async def check_health(self) -> None:
        """Called by Serve: a version that is never done (a stuck disk) makes the part be restarted."""
        if self._batcher.busy_seconds > STUCK_SECONDS:
            raise RuntimeError(f"one version has been in the making for more than {STUCK_SECONDS} s")


class _Sent:
    """The weights' side of the encoder, as the thread that commits sees it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.dim = writer.dim

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        return self._writer.encode(batch, None)

    def encode_windows(self, batch: TokenBatch, windows: Windows) -> np.ndarray:
        return self._writer.encode(batch, windows)


def _pieces(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Rows in runs of about so many tokens each."""
    numbers = np.cumsum(lengths) // max(1, tokens)
    return [rows for rows in np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(numbers)) + 1) if len(rows)]


def _problem(error: RayvecError) -> Problem:
    """What a client is told of a version that could not be made; the log has the details, which may name folders."""
    if isinstance(error, ConcurrentWriterError):
        return unavailable("a job is writing this index; try again when it is done", "index_busy", BUSY_SECONDS)
    if isinstance(error, MismatchError):
        message = "the index was built anew, with another encoder, settings or columns; start the service again over it"
        return Problem(409, "index_changed", message)
    if isinstance(error, StorageError):
        if _is_read_only(error):
            return Problem(403, "index_read_only", "the index's folder may not be written; see its permissions")
        return unavailable("the index's disk has failed or is full; see the service's log", "storage_failed", 30)
    return Problem(500, "write_failed", "the version could not be made; the service's log has the details")


def _is_read_only(error: BaseException) -> bool:
    cause: Any = error.__cause__
    return isinstance(cause, PermissionError) or getattr(cause, "errno", None) == 30
