"""The part that finds documents for vectors and words: one version of an index, and those that follow it.

A plain class; `rayvec.serving.app` makes a deployment of it. It works off the event loop, so that health checks and new
requests are answered while it is busy. Knows the index. Knows no encoder, no HTTP and no Ray.

Shapes: Q queries, D dimensions, K hits a query.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayvec.errors import UserError
from rayvec.fingerprint import Fingerprint
from rayvec.serving.listing import Described, described
from rayvec.serving.mapping import Cartographer
from rayvec.serving.open_versions import OpenVersions
from rayvec.serving.parts import PartService, Scatter, ScatteredIndex
from rayvec.serving.problems import ENCODER_CHANGED, Problem, invalid, unavailable
from rayvec.serving.recall import recall_now
from rayvec.serving.refusals import NotYetError, Refusal
from rayvec.serving.rerank import load_reranker
from rayvec.serving.search import Options, index_modes, scores_of, search_index, shown, told_of_windows
from rayvec.serving.services import Fetched, Found, IndexFacts, Reached
from rayvec.serving.threads import Threads

if TYPE_CHECKING:
    from rayvec.indexing.maps import Map
    from rayvec.indexing.searcher import Index

_LOG = logging.getLogger(__name__)

#: Seconds that a search waits for the version that it asks for, and a look at CURRENT meanwhile.
REACH_SECONDS = 5.0
REACH_POLL = 0.05
#: Searches that ask parts at a time.
ASKING_THREADS = 32
#: How long a retriever waits at its start for parts that are being loaded.
PARTS_SECONDS = 600.0

#: Fields of a search request by which an error of the index may begin.
OPTIONS = frozenset({"filter", "unique_by", "rerank", "include", "like"})


class Retriever:
    """Searches one version of an index, and changes to another without a request seeing both.

    It holds none until `reconfigure` is called, which Serve does before the first request. Where no version is pinned,
    it follows CURRENT: a new version is loaded, checked and warmed beside the old one, which goes on if it is refused.
    """

    def __init__(
        self,
        uri: str,
        expected: Fingerprint | None = None,
        reranker: str | None = None,
        poll_seconds: float = 2.0,
        parts: Sequence[PartService] = (),
        part_seconds: float = 5.0,
        recall_seconds: float = 0.0,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._uri = uri
        self._recall_seconds = recall_seconds
        self._watcher: asyncio.Task[None] | None = None
        self._parts, self._part_seconds = parts, part_seconds
        self._scatter: Scatter | None = None
        self._recall: float | None = None
        self._reranker = None if reranker is None else load_reranker(reranker)
        self._expected = expected
        self._fingerprint = None if expected is None else expected.short
        self._poll_seconds = poll_seconds
        # A thread that asks parts waits most of the time; one that searches by itself works.
        self._threads = Threads(ASKING_THREADS if parts else 2, "search")
        self._timeout_seconds = timeout_seconds
        self._versions = OpenVersions(self._open, keep=1)
        self._looker = Threads(1, "look")
        self._cartographer = Cartographer()
        self._index: Index | None = None
        self._refusal = Refusal(poll_seconds)
        self._looking = asyncio.Lock()
        self._replica = uuid.uuid4().hex
        self._follower: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve: take the version named, or (None) the live one and those that follow it.

        Raises MismatchError unless the index was made by the expected encoder, VerificationError when it is damaged;
        the version before then goes on.
        """
        if self._parts and self._scatter is None:
            self._scatter = Scatter(self._parts, self._part_seconds)
        pinned = user_config.get("version")
        if self._index is None or pinned not in (None, self._index.version):
            self._index = await self._load_when_parts_are_there(pinned)
        if self._follower is not None:
            self._follower.cancel()
        self._follower = asyncio.create_task(self._follow()) if pinned is None else None
        if self._recall_seconds and self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Look again and again whether a search finds what comparing with all vectors finds."""
        while True:
            await asyncio.sleep(self._recall_seconds)
            try:
                self._recall = await asyncio.to_thread(recall_now, self._live())
            except Exception as error:  # whatever it is, searches go on
                _LOG.warning("recall could not be looked at: %s", error)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self.look()

    async def look(self) -> None:
        """Take the live version, if it is another than the one that is served and was not refused already."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        from rayvec.indexing import places
        from rayvec.indexing.versions import CURRENT

        live, name = self._live(), CURRENT
        try:
            name = await self._looker.run(places.current, self._uri)
            if name != live.version:
                if not self._refusal.allows(name):
                    return
                self._index = await self._versions.get(name)
            self._refusal.clear()
        except Exception as error:  # whatever is wrong with the new one, the old one is served
            if self._refusal.note(name, error):
                _LOG.warning("index version refused, %s goes on: %s", live.version, self._refusal.told)

    async def _load_when_parts_are_there(self, version: str | None) -> Index:
        """At the start parts may still be loading: wait for them, and not for ever."""
        end = asyncio.get_running_loop().time() + PARTS_SECONDS
        while True:
            try:
                return await self._versions.get(version)
            except NotYetError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(REACH_POLL)

    def _open(self, version: str | None, before: Index | None) -> Index:
        from rayvec.indexing.searcher import Index

        index = (
            Index.open(self._uri, version, before=before)
            if self._scatter is None
            else ScatteredIndex.over(self._scatter, self._uri, version, before)
        )
        if self._expected is not None:
            index.fingerprint.require(self._expected, mine="index", theirs="encoder")
        asked = _for_request(index)
        search_index(asked, ["warm up"], np.ones((1, index.dim), np.float32), Options(k=1, mode=index_modes(index)[0]))
        if missing := _missing(asked)[1]:
            raise NotYetError(f"parts {', '.join(map(str, missing))} of {index.version} are not loaded")
        return index

    def _live(self) -> Index:
        if self._index is None:
            raise unavailable("no index is loaded yet", code="not_ready")
        return self._index

    async def search(
        self, queries: list[str], vectors_QD: np.ndarray | None, options: Options, fingerprint: str | None = None
    ) -> Found:
        """The k best documents of each query, fewer where the index has fewer.

        fingerprint: of the encoder that the vectors are of, in short.
        """
        if options.min_index_version is not None and not (await self.reach(options.min_index_version)).there:
            raise await self._looker.run(self._not_served, options.min_index_version)
        if None not in (fingerprint, self._fingerprint) and fingerprint != self._fingerprint:
            # Copies of the parts are replaced one after the other: this one is of before, or of after.
            raise unavailable("the service is changing to another encoder; try again shortly", code=ENCODER_CHANGED)
        if options.rerank:
            self._require_reranker("rerank")
        # Taken once: a change of version during this request does not reach it.
        index = _for_request(self._live())
        modes = index_modes(index)
        mode = options.mode or modes[0]
        if mode not in modes:
            raise invalid(f"mode: this index has no {mode} search; use {' or '.join(modes)}", "mode")
        if mode != options.mode:
            options = dataclasses.replace(options, mode=mode)
        found = await self._cartographer.soon(index) if "map" in options.include else None
        try:
            hits = await self._threads.run(search_index, index, queries, vectors_QD, options, self._reranker, found)
        except UserError as error:  # a query whose vector has no direction, a column that is not there
            field, _, _ = str(error).partition(":")
            raise invalid(str(error), field if field in OPTIONS else options.by) from None
        coverage, missing = _missing(index)
        if missing and not options.allow_partial:
            message = f"parts {', '.join(map(str, missing))} of the vectors do not answer; try again shortly"
            raise unavailable(message, code="shards_missing")
        return Found(hits, index.version, mode, coverage, missing)

    async def rerank(self, query: str, texts: list[str]) -> list[float]:
        """The reranker's score of each text. Raises Problem 422 where there is no reranker."""
        self._require_reranker(None)
        return await self._threads.run(scores_of, self._reranker, query, texts)

    def _require_reranker(self, param: str | None) -> None:
        if self._reranker is None:
            asked, other = (f"{param}: ", "leave it out, or ") if param else ("", "")
            message = f"{asked}this service has no reranker; {other}start it with --set reranker=…"
            raise invalid(message, param, code="no_reranker")

    async def document(self, id_: str) -> Fetched:
        """One document, from the version that is served. Raises Problem 404."""
        index = self._live()
        (row,) = (await self._threads.run(index.rows_of, [id_])).tolist()
        if row < 0:
            message = f"there is no document {id_!r} in {index.version}{told_of_windows(index)}"
            raise Problem(404, "document_not_found", message, "id")
        (document,) = await self._threads.run(index.documents, [row])
        return Fetched(index.version, shown(document, ("text", "payload")))

    def _not_served(self, version: str) -> Problem:
        from rayvec.indexing import places

        if all(_number(name) < _number(version) for name in places.list_versions(self._uri)):
            message = f"min_index_version: there is no version {version}; give the one that a write answered"
            return invalid(message, "min_index_version")
        return unavailable(f"{version} is not served yet; try again shortly", code="version_not_served")

    async def reach(self, version: str) -> Reached:
        """Serve a version, or a later one, as soon as it can be, within some seconds. A pinned part stays as it is."""
        end = asyncio.get_running_loop().time() + REACH_SECONDS
        while not (there := _number(self._live().version) >= _number(version)):
            if self._follower is None or asyncio.get_running_loop().time() > end:
                break
            await self.look()
            await asyncio.sleep(0 if _number(self._live().version) >= _number(version) else REACH_POLL)
        return Reached(self._replica, there)

    async def describe(self) -> Described:
        """What there is to know of the index."""
        facts = await self.facts()
        return Described(described(self._live()), facts.refused)

    async def map(self) -> Map:
        """The map of the version that is served now; the first to ask waits for it to be drawn."""
        return await self._cartographer.drawn(self._live())

    async def facts(self) -> IndexFacts:
        """What is loaded."""
        index = self._live()
        refused = self._refusal.shown
        if self._looker.busy_seconds > self._timeout_seconds:  # the index in memory is searched all the same
            refused = f"the index's folder has not answered for {self._looker.busy_seconds:.0f} s"
        resting = self._scatter.resting if self._scatter else []
        return IndexFacts(index.version, index.count, index_modes(index), refused, resting, self._recall)

    async def check_health(self) -> None:
        """Called by Serve: a search that hangs (a stuck disk or device) makes the part be restarted."""
        self._threads.check(2 * self._timeout_seconds)


def _for_request(index: Index) -> Index:
    return index.for_request() if isinstance(index, ScatteredIndex) else index


def _missing(index: Index) -> tuple[float, list[int]]:
    """The share of the vectors that a request's searches saw, and the parts that did not answer them."""
    return (index.coverage, sorted(index.missing)) if isinstance(index, ScatteredIndex) else (1.0, [])


def _number(version: str) -> int:
    return int(version[1:])
