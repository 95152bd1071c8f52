"""Index: embeddings on disk to a searchable, verified version: check, reduce, train, fill, prove, publish."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from pipelines._ray import ray_session
from pipelines.report import Report, recipe_family
from rayvec import storage
from rayvec.config import Config
from rayvec.errors import MismatchError, UserError
from rayvec.indexing import drafts, places, spec
from rayvec.indexing.spec import AUTO, Spec
from rayvec.schema import ID, TEXT, TITLE
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from pathlib import Path

    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.corpus import Corpus
    from rayvec.indexing.drafts import Draft
    from rayvec.indexing.estimate import Estimate
    from rayvec.indexing.pca import Axes
    from rayvec.indexing.segments import Source


#: What a version's files are for, by how their names begin.
FILES = {
    "vectors": "shard-",
    "documents": "documents",
    "lexical": "lexical",
    "transform": "transform",
    "embeddings": "embeddings-",
}


class IndexConfig(Config):
    """What to index, how, and how good it must be."""

    #: The output of the embed job.
    embeddings: str = ""
    #: Where the versions of the index go: a folder, or a bucket, for which they are built on the driver's machine.
    output: str = ""
    #: "auto", or a FAISS factory string such as "Flat", "IVF1024,SQ8", "HNSW32" or "RR768,IVF4096,RaBitQ,Refine(SQ8)".
    factory: str = AUTO
    #: Memory that searching may keep, such as "4GB"; vectors for refinement are mapped from disk and do not count.
    memory_budget: int | str | None = None
    #: Milliseconds that a query may take on one core, as estimated; "auto" chooses by it.
    latency_ms: float | None = Field(default=None, gt=0)
    #: Dimensions to keep; all of them when null.
    dimensions: PositiveInt | None = None
    #: Which: those of most variance by PCA, or the first, of an encoder trained for that (Matryoshka).
    reduce: Literal["pca", "truncate"] = "pca"
    #: Whether PCA brings all dimensions that it keeps to equal variance.
    whiten: bool = False
    #: recall@10 against exact search that the index must reach; a build that cannot publishes nothing.
    recall_target: float = Field(default=0.95, gt=0, le=1)
    #: Embeddings of queries by the same encoder; recall is proved for them too, and both must reach the target.
    queries: str = ""
    #: Whether to build BM25 over the same documents, for hybrid search; over which columns, and which Snowball stemmer.
    lexical: bool = True
    lexical_columns: tuple[str, ...] = Field(default=(ID, TITLE, TEXT), min_length=1)
    stemmer: str | None = "english"
    #: FAISS files; 0 lets none pass 2 GB.
    shards: int = Field(default=0, ge=0, le=4096)
    #: Of the random samples for training and for proof.
    seed: NonNegativeInt = 0
    #: Build a new version even if the live one is just what would be built.
    rebuild: bool = False

    @field_validator("factory")
    @classmethod
    def _known_factory(cls, factory: str) -> str:
        return spec.check_factory(factory)

    @field_validator("stemmer")
    @classmethod
    def _known_stemmer(cls, stemmer: str | None) -> str | None:
        import Stemmer

        if stemmer is not None and stemmer not in Stemmer.algorithms():
            raise ValueError(f"no Snowball stemmer {stemmer!r}; there are {', '.join(Stemmer.algorithms())}, or null")
        return stemmer

    @field_validator("memory_budget")
    @classmethod
    def _bytes(cls, budget: int | str | None) -> int | None:
        return None if budget is None else spec.parse_bytes(budget)

    @model_validator(mode="after")
    def _whitening_needs_axes(self) -> IndexConfig:
        if self.whiten and (self.dimensions is None or self.reduce != "pca"):
            raise UserError("whiten = true is a part of PCA: set dimensions=N and reduce=pca, or whiten=false")
        return self


def index(config: IndexConfig) -> Report:
    """Build a search index over embeddings, prove its recall, and make it the live version.

    Raises UserError, VerificationError (a damaged part, or a recall under the target), ConcurrentWriterError or
    StorageError; what was live stays live.
    """
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.corpus import Corpus
    from rayvec.indexing.segments import Source

    for key in ("embeddings", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give a folder with --set {key}=DIR")
    dataset = EmbeddingsDataset.open(config.embeddings)
    queries = _queries(config, dataset)
    recipe, source = _recipe(config, dataset, queries), Source.of(dataset)
    is_wanted = partial(_is_wanted, None if config.rebuild else recipe, source)
    with places.building(config.output, is_wanted) as place:
        if place.finished is not None:
            return _report(config, place.finished, {}, reused=True)
        seconds: dict[str, float] = {}
        with drafts.new_version(place.folder) as draft, ray_session():
            asked = Corpus.of(queries) if queries else None
            facts = build_version(config, Corpus.of(dataset), dataset.payload, draft, seconds, asked)
            embedded = {"embedded": _embedded(dataset)}
            manifest = draft.commit({**recipe, **embedded, **facts, **one_segment(facts, [source]), **place.facts})
        report = _report(config, manifest, seconds, reused=False)
        storage.write_bytes(place.folder / "config.yaml", config.to_yaml().encode())
        storage.write_json(place.folder / "report.json", report)
    return report


def _queries(config: IndexConfig, dataset: EmbeddingsDataset) -> EmbeddingsDataset | None:
    """The embeddings of queries, if any are given. Raises MismatchError unless the same encoder made them."""
    from rayvec.data.embeddings import EmbeddingsDataset

    if not config.queries:
        return None
    found = EmbeddingsDataset.open(config.queries)
    dataset.fingerprint.require(found.fingerprint, mine=dataset.uri, theirs=found.uri)
    if found.dim != dataset.dim:
        raise MismatchError(f"{found.uri} holds vectors of {found.dim} dimensions, and {dataset.uri} of {dataset.dim}")
    if not found.count:
        raise UserError(f"queries = {config.queries!r} holds no vectors; embed some queries first, or leave it out")
    return found


def _choose(config: IndexConfig, count: int, dim: int) -> Spec:
    return spec.choose(
        config.factory,
        count,
        dim,
        memory_budget=int(config.memory_budget) if config.memory_budget is not None else None,
        latency_ms=config.latency_ms,
        recall_target=config.recall_target,
    )


def build_version(
    config: IndexConfig,
    corpus: Corpus,
    payload: list[str],
    draft: Draft,
    seconds: dict[str, float],
    asked: Corpus | None = None,
) -> JsonObject:
    """Fill the draft's folder. Returns what the manifest says of it, but for the segment. asked: vectors of queries."""
    from rayvec.indexing import build, pca, reducing
    from rayvec.indexing.corpus import check_parts
    from rayvec.indexing.searcher import DOCUMENTS, LEXICAL, TRANSFORM
    from rayvec.indexing.tasks import Clock

    # What cannot be is refused before hours of work; dimensions that PCA will cut are counted as cut.
    _choose(config, corpus.count, min(config.dimensions or corpus.dim, corpus.dim))
    with timed(seconds, "check"):
        check_parts(corpus)
        if asked:
            check_parts(asked)
    axes = None
    if config.dimensions is not None:
        with timed(seconds, config.reduce):
            axes = reducing.axes(corpus, config.seed) if config.reduce == "pca" else None
            corpus = reducing.reduce(corpus, config.dimensions, method=config.reduce, whiten=config.whiten, found=axes)
    if corpus.projection:
        pca.save(corpus.projection, draft.folder / TRANSFORM)
    chosen = _choose(config, corpus.count, corpus.dim_index)
    shards, clock = build.shard_count(corpus, chosen, config.shards), Clock()
    expected = build.expect(corpus, chosen, shards)
    _say(f"{chosen.factory}: {chosen.why}")
    _say(f"expecting {_words(expected)}")
    with timed(seconds, "train"):
        trained, sample = build.train(corpus, chosen, config.seed, clock)
    with timed(seconds, "fill"):
        entries = build.fill(corpus, chosen, trained, shards, draft.folder, clock)
    with timed(seconds, "documents"):
        build.write_documents(corpus, payload, draft.folder / DOCUMENTS)
    lexical = None
    if config.lexical:
        with timed(seconds, "lexical"):
            lexical = build.write_lexical(corpus, config.lexical_columns, config.stemmer, draft.folder / LEXICAL)
    with timed(seconds, "prove"):
        proof = build.prove(corpus, entries, draft.folder, sample, config.recall_target, config.seed, asked)
    if config.latency_ms is not None and proof["latency_ms"]["p50"] > config.latency_ms:
        _say(f"a query takes {proof['latency_ms']['p50']:.3g} ms here, over latency_ms = {config.latency_ms:g}")
    kept = proof.get("recall_of_reduction")
    if kept is not None and kept < config.recall_target:
        _say(
            f"warning: {corpus.dim_index} of {corpus.dim} dimensions find only {kept:.0%} of what all find (recall@10 "
            f"{kept:.2f}, under recall_target = {config.recall_target:g}); set more dimensions, or leave them all: "
            "recall@10_in_dimensions of the report has what each number of them keeps"
        )
    if corpus.projection:
        with timed(seconds, "dimensions"):
            proof["fewer_dimensions"] = _fewer_dimensions(config, corpus, axes, draft.output)
    return {
        "count": corpus.count,
        "dim": corpus.dim,
        "dim_index": corpus.dim_index,
        "metric": "inner_product",
        "normalize": corpus.normalize,
        "transform": _transform(config, corpus, axes),
        "factory": chosen.factory,
        "why": chosen.why,
        "trained_on": len(sample),
        "shards": entries,
        "search": proof.pop("search"),
        "cost": {
            "estimated": expected.as_dict(),
            "actual": {
                "bytes": sum((draft.folder / entry["file"]).stat().st_size for entry in entries),
                "resident": proof.pop("resident"),
                "cpu_seconds": round(clock.seconds, 3),
            },
        },
        "proof": proof,
        "lexical": lexical,
        "seconds": seconds,
    }


def one_segment(facts: JsonObject, sources: Sequence[Source], left_out: int = 0) -> JsonObject:
    """What the manifest says of a version that was built whole: one segment, nothing dropped, no update since."""
    from rayvec.indexing.segments import Segment

    segment = Segment("", 0, facts["count"], tuple(sources), left_out, facts["lexical"] is not None)
    return {"segments": [segment.to_json()], "dropped": 0, "update": None}


def _transform(config: IndexConfig, corpus: Corpus, axes: Axes | None) -> JsonObject | None:
    """What the manifest says of the projection: `normalize` is for its reader, the rest for people."""
    if corpus.projection is None:
        return None
    facts: JsonObject = {"kind": config.reduce, "normalize": corpus.normalize}
    if axes is not None:
        facts |= {"whiten": config.whiten, "fitted_on": axes.count}
        facts["explained_variance"] = corpus.projection.explained[-1]
    return facts


def _fewer_dimensions(config: IndexConfig, corpus: Corpus, axes: Axes | None, output: Path) -> list[JsonObject]:
    """Exact search in fewer dimensions on a sample, each way, as a table and a picture beside the report."""
    from rayvec.evaluation.trade_offs import draw_dimensions
    from rayvec.indexing import reducing

    kept, explained = reducing.compare_dimensions(corpus, axes, config.seed)
    recalls: dict[str, dict[int, float]] = {}
    for row in kept:
        if row.way:
            recalls.setdefault(row.way, {})[row.dimensions] = row.recall
    draw_dimensions(explained, recalls, str(output / "dimensions.png"))
    return [{"way": row.way, "dimensions": row.dimensions, "recall@10": round(row.recall, 4)} for row in kept]


def _recipe(config: IndexConfig, dataset: EmbeddingsDataset, queries: EmbeddingsDataset | None) -> JsonObject:
    """What decides the index beside the embeddings: the configuration, the queries, and what it says of them."""
    settings = config.model_dump(mode="json", exclude={"embeddings", "output", "rebuild", "queries"})
    return {
        "encoder": dataset.manifest["encoder"],
        "fingerprint": dataset.fingerprint.model_dump(),
        "payload": dataset.payload,
        "dtype": dataset.manifest["dtype"],
        "config": settings,
        "queries": storage.sha256_bytes(storage.to_json(queries.manifest)) if queries else None,
    }


def _embedded(dataset: EmbeddingsDataset) -> JsonObject | None:
    """How the documents became vectors: what a service that takes new ones must do too. None where it is not told."""
    settings = dataset.manifest.get("settings")
    return None if settings is None else {name: value for name, value in settings.items() if name != "source"}


def _is_wanted(recipe: JsonObject | None, source: Source, manifest: JsonObject) -> bool:
    """Whether a version is of this very recipe over these very embeddings; none is where it is to be built anew."""
    from rayvec.indexing.segments import segments_of

    if recipe is None or any(manifest.get(key) != value for key, value in recipe.items()):
        return False
    sources = [found.manifest_sha256 for segment in segments_of(manifest) for found in segment.sources]
    return sources == [source.manifest_sha256] and bool(manifest["count"] == source.rows)


def _report(config: IndexConfig, manifest: JsonObject, seconds: dict[str, float], *, reused: bool) -> Report:
    proof = manifest["proof"]
    transform = manifest["transform"] or {}
    return {
        "version": manifest["version"],
        "reused": reused,
        "documents": manifest["count"],
        "dimensions": manifest["dim_index"],
        "explained_variance": transform.get("explained_variance"),
        "factory": manifest["factory"],
        "why": manifest["why"],
        "search": manifest["search"],
        "recall@10": proof["recall"],
        "recall@10_of_queries": proof.get("recall_of_queries"),
        "recall@10_of_reduction": proof.get("recall_of_reduction"),
        "recall@10_in_dimensions": _in_dimensions(proof),
        "latency_ms": proof["latency_ms"],
        "cost": manifest["cost"],
        "bytes": bytes_by_use(manifest),
        "seconds": seconds,
        "output": config.output,
        "next": f"python -m jobs.serve --recipe {recipe_family(manifest['encoder'])}.serve --set index={config.output}",
    }


def bytes_by_use(manifest: JsonObject) -> dict[str, int]:
    """Bytes of a version's files by what they are for, all segments together."""
    from rayvec.indexing.segments import DELTA

    sizes = dict.fromkeys(FILES, 0)
    for path, facts in manifest["files"].items():
        inside = path.partition("/")[2] if path.startswith(DELTA) else path
        for use, prefix in FILES.items():
            sizes[use] += int(facts["bytes"]) if inside.startswith(prefix) else 0
    return sizes


def _in_dimensions(proof: JsonObject) -> dict[str, dict[str, float]]:
    """recall@10 of exact search on a sample, by way and number of dimensions."""
    found: dict[str, dict[str, float]] = {}
    for row in proof.get("fewer_dimensions", ()):
        if row["way"]:
            found.setdefault(row["way"], {})[str(row["dimensions"])] = row["recall@10"]
    return found


def _say(line: str) -> None:
    sys.stderr.write(f"index: {line}\n")


def _words(expected: Estimate) -> str:
    return (
        f"{spec.human_bytes(expected.bytes)} on disk, {spec.human_bytes(expected.resident)} in memory, "
        f"about {expected.cpu_seconds:.0f} CPU-seconds to train and fill"
    )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write down how long a stage takes, and tell it."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
    _say(f"{stage} done in {seconds[stage]:.1f} s")
