"""The gateway: what happens to a request between its arrival as a checked value and its answer.

Encode, search, count the time. Knows the two services by their protocols, wherever they
run. Knows no routes, no HTTP framework beyond the errors it raises, and no Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import numpy as np

from rayvec.serving.admission import Admission
from rayvec.serving.cache import CachedEncoder
from rayvec.serving.changes import Change
from rayvec.serving.config import Limits, SearchDefaults
from rayvec.serving.embedded import Embedded, shortened
from rayvec.serving.metrics import Metrics
from rayvec.serving.problems import ENCODER_CHANGED, Problem, invalid, unavailable
from rayvec.serving.schemas import (
    DeleteRequest,
    DocumentAnswer,
    EmbeddingAnswer,
    EmbeddingRequest,
    Indexes,
    MapAnswer,
    Model,
    Models,
    Ready,
    RerankAnswer,
    Reranked,
    RerankedText,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
    SearchResult,
    ServedIndex,
    Timings,
    UpsertRequest,
    Usage,
    WriteAnswer,
)
from rayvec.serving.search import MAP_DECIMALS, Options, rounded
from rayvec.serving.services import Encoded, EncoderFacts, EncoderService, Found, IndexFacts, RetrieverService
from rayvec.serving.tracing import Tracer
from rayvec.serving.writer import WriterService

READY_SECONDS = 5.0
#: How long a write waits for every copy of the retriever, where it was asked to.
LIVE_SECONDS = 15.0


class Gateway:
    """Answers requests through an encoder and a retriever; `index_version` is the one that it begins with.

    writer: None where the index is not written over HTTP. retrievers: how many copies of the retriever there are.
    replica: what its numbers are told apart by from those of other gateways.
    instructions: what is read before a "query" and a "document", where there is any.
    """

    def __init__(
        self,
        encoder: EncoderService,
        retriever: RetrieverService,
        writer: WriterService | None = None,
        *,
        model: str,
        index_name: str = "index",
        retrievers: int = 1,
        index_version: str = "",
        instructions: Mapping[str, str] | None = None,
        defaults: SearchDefaults | None = None,
        limits: Limits | None = None,
        cache_bytes: int = 0,
        traces: str | None = None,
        replica: str = "",
    ) -> None:
        self.tracer = Tracer(traces)
        self._encoder = encoder
        self._retriever = retriever
        self._writer = writer
        self._model = model
        self._index_name = index_name
        self._retrievers = retrievers
        self._instructions = dict(instructions or {})
        self._defaults = defaults or SearchDefaults()
        self._cached = CachedEncoder(encoder, cache_bytes)
        self.metrics = Metrics(replica)
        self._version = index_version
        self.admission = Admission(limits or Limits(), self.metrics)
        self._started = int(time.time())

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Documents for queries. A lexical search does not trouble the encoder."""
        async with self.admission.place():
            begin = time.perf_counter()
            queries = request.queries
            encoded = None
            options = Options.asked(request, self._defaults)
            if options.encodes:
                with self.tracer.part("encode"):
                    encoded = await self._cached.encode(queries, self._instruction(request.instruction, "query"))
            middle = time.perf_counter()
            vectors_QD = _as_array(request.vectors) if encoded is None else encoded.vectors_BD
            with self.tracer.part("search"):
                found = await self._found(queries, vectors_QD, options, encoded)
            end = time.perf_counter()
        self._count(encoded, found.version, middle - begin, end - middle)
        if found.missing:
            self.metrics.incomplete()
        truncated = encoded.truncated if encoded else [False] * len(queries)
        return SearchAnswer(
            model=self._model,
            mode=found.mode,
            index_version=found.version,
            results=[SearchResult(hits=h, truncated=t) for h, t in zip(found.hits, truncated, strict=True)],
            usage=_usage(encoded),
            timings=Timings(
                encode_ms=_ms(middle - begin) if encoded else 0.0,
                search_ms=_ms(end - middle),
                total_ms=_ms(end - begin),
            ),
            coverage=round(found.coverage, 6),
            missing_parts=found.missing,
        )

    async def _found(
        self, queries: list[str], vectors_QD: np.ndarray | None, options: Options, encoded: Encoded | None
    ) -> Found:
        fingerprint = None if encoded is None else encoded.fingerprint
        try:
            return await self._retriever.search(queries, vectors_QD, options, fingerprint)
        except Problem as problem:
            if problem.code == ENCODER_CHANGED:
                self._cached.forget()
            raise

    def _count(self, encoded: Encoded | None, version: str, encode_seconds: float, search_seconds: float) -> None:
        self._seen(version)
        self.metrics.stage("search", search_seconds)
        if encoded is not None:
            self.metrics.stage("encode", encode_seconds)
            self.metrics.encoded(encoded.n_tokens)
            self.metrics.batched(encoded.batch)
            self.metrics.cached(*self._cached.take_counts())

    def _seen(self, version: str) -> None:
        self._version = version
        self.metrics.index(version)

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        """Vectors, as OpenAI's API gives them."""
        self._check_model(request.model)
        async with self.admission.place():
            begin = time.perf_counter()
            with self.tracer.part("encode"):
                encoded = await self._encode(request)
            self.metrics.stage("encode", time.perf_counter() - begin)
            self.metrics.encoded(encoded.n_tokens)
            self.metrics.batched(encoded.batch)
        answer = EmbeddingAnswer(
            data=[],
            model=self._model,
            usage=_usage(encoded),
            index_version=self._version,
            truncated=[i for i, cut in enumerate(encoded.truncated) if cut],
        )
        return Embedded(answer, shortened(encoded.vectors_BD, request.dimensions), request.encoding_format)

    async def _encode(self, request: EmbeddingRequest) -> Encoded:
        texts, ids = request.texts_or_ids()
        instruction = self._instruction(request.instruction, request.input_type)
        if ids is None:
            return await self._encoder.encode(texts, instruction)
        if instruction:
            message = "instruction: token ids are taken as they are; send text, or leave the instruction out"
            raise invalid(message, "instruction")
        return await self._encoder.encode_ids(ids)

    def _instruction(self, given: str | None, kind: str | None) -> str | None:
        """The one that a request gives, even an empty one, or the service's for this kind of text."""
        return given if given is not None or kind is None else self._instructions.get(kind)

    async def rerank(self, request: RerankRequest) -> RerankAnswer:
        """Texts in the order of the service's reranker."""
        async with self.admission.place():
            begin = time.perf_counter()
            with self.tracer.part("rerank"):
                scores = await self._retriever.rerank(request.query, request.documents)
            self.metrics.stage("rerank", time.perf_counter() - begin)
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        texts = [RerankedText(text=text) if request.return_documents else None for text in request.documents]
        return RerankAnswer(
            results=[
                Reranked(index=place, relevance_score=scores[place], document=texts[place])
                for place in order[: request.top_n]
            ]
        )

    async def document(self, id_: str) -> DocumentAnswer:
        """One document by its id."""
        async with self.admission.place():
            found = await self._retriever.document(id_)
        return DocumentAnswer(index_version=found.version, **found.fields)

    async def upsert(self, request: UpsertRequest) -> WriteAnswer:
        """Put documents in. They are on disk when this answers."""
        return await self._write(Change(documents=request.documents), request.wait)

    async def delete(self, request: DeleteRequest) -> WriteAnswer:
        """Take documents out. They are out on disk when this answers."""
        return await self._write(Change(ids=list(dict.fromkeys(request.ids))), request.wait)

    async def _write(self, change: Change, wait: bool) -> WriteAnswer:
        if self._writer is None:
            message = (
                "this service does not take writes; start it with --set writable=true, on an index that it follows"
            )
            raise Problem(403, "read_only", message)
        begin = time.perf_counter()
        async with self.admission.place("; it may be done all the same, and may be sent again"):
            with self.tracer.part("write"):
                written = await self._writer.write(change)
            live = await self._reached(written.version, wait)
        counts = {
            "added": written.added,
            "replaced": written.replaced,
            "unchanged": written.unchanged,
            "deleted": written.deleted,
            "unknown": len(written.unknown_ids),
        }
        self.metrics.wrote(counts, {**written.seconds, "total": time.perf_counter() - begin})
        self.metrics.encoded(written.n_tokens)
        return WriteAnswer(
            index_version=written.version,
            live=live,
            added=written.added,
            replaced=written.replaced,
            unchanged=written.unchanged,
            deleted=written.deleted,
            unknown_ids=written.unknown_ids,
            truncated=written.truncated,
            usage=Usage(prompt_tokens=written.n_tokens, total_tokens=written.n_tokens),
            total_ms=_ms(time.perf_counter() - begin),
        )

    async def _reached(self, version: str, wait: bool) -> bool:
        """Whether every copy of the retriever serves a version; each is met by asking at random, until all were."""
        seen: set[str] = set()
        end = time.monotonic() + LIVE_SECONDS
        while wait and len(seen) < self._retrievers and time.monotonic() < end:
            reached = await self._retriever.reach(version)
            if not reached.there:
                break
            seen.add(reached.replica)
        return len(seen) >= self._retrievers

    async def indexes(self) -> Indexes:
        """The one index that is served."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                found = await self._retriever.describe()
        except TimeoutError:
            raise unavailable("the index does not answer", code="not_ready") from None
        index = ServedIndex(
            id=self._index_name,
            model=self._model,
            writable=self._writer is not None,
            refused=found.refused,
            **found.fields,
        )
        return Indexes(data=[index])

    async def map(self, limit: int) -> MapAnswer:
        """At most `limit` documents on the map of the index. The first to ask waits until it is drawn."""
        async with self.admission.place("; the map is being drawn, ask again"):
            found = await self._retriever.map()
        points = rounded(found.points[:limit])
        return MapAnswer(
            index_version=found.version,
            documents=found.documents,
            explained=round(found.explained, MAP_DECIMALS),
            ids=found.ids[:limit],
            titles=found.titles[:limit],
            x=[x for x, _ in points],
            y=[y for _, y in points],
        )

    async def model(self, name: str) -> Model:
        """The model of this name. Raises Problem 404."""
        self._check_model(name)
        return (await self.models()).data[0]

    def _check_model(self, name: str) -> None:
        if name != self._model:
            message = f"the model {name!r} is not served here; this service has {self._model!r}"
            raise Problem(404, "model_not_found", message, "model")

    async def models(self) -> Models:
        """The one model that is served, with the index's version: the last one seen where it does not answer."""
        facts = await self._encoder_facts()
        await asyncio.gather(self._index_facts(), return_exceptions=True)
        model = Model(
            id=self._model,
            created=self._started,
            dimensions=facts.dim,
            max_input_tokens=facts.max_length,
            fingerprint=facts.fingerprint,
            index_version=self._version,
            instructions=self._instructions,
        )
        return Models(data=[model])

    async def ready(self) -> Ready:
        """Both parts answer, or Problem 503."""
        _, index = await asyncio.gather(self._encoder_facts(), self._index_facts())
        return Ready(
            model=self._model,
            index_version=index.version,
            documents=index.count,
            modes=index.modes,
            mode=self._defaults.mode or index.modes[0],
            refused=index.refused,
            missing_parts=index.missing,
            recall=index.recall,
        )

    async def numbers(self) -> bytes:
        """What Prometheus is told. The index is asked for its own; a scrape does not fail because it cannot answer."""
        await asyncio.gather(self._index_facts(), return_exceptions=True)
        return self.metrics.render()

    async def _encoder_facts(self) -> EncoderFacts:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await self._encoder.facts()
        except TimeoutError:
            raise unavailable("the encoder does not answer", code="not_ready") from None

    async def _index_facts(self) -> IndexFacts:
        try:
            async with asyncio.timeout(READY_SECONDS):
                facts = await self._retriever.facts()
        except TimeoutError:
            raise unavailable("the index does not answer", code="not_ready") from None
        self._seen(facts.version)
        self.metrics.looked(facts.recall, refused=facts.refused is not None)
        return facts


def _as_array(vectors: list[list[float]] | None) -> np.ndarray | None:
    """The vectors that a request brings, float32 [Q, D]; too large a number is infinite, and refused as such."""
    with np.errstate(over="ignore"):
        return None if vectors is None else np.array(vectors, np.float32)


def _usage(encoded: Encoded | None) -> Usage:
    tokens = encoded.n_tokens if encoded else 0
    return Usage(prompt_tokens=tokens, total_tokens=tokens)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
