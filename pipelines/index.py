"""Index: embeddings on disk to a searchable, verified version: check, reduce, train, fill, prove, publish."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from pipelines._ray import ray_session
from pipelines.report import Report, recipe_family
from rayvec import storage
from rayvec.config import Config
from rayvec.errors import UserError, VerificationError
from rayvec.indexing import spec, versions
from rayvec.indexing.spec import AUTO
from rayvec.schema import ID, TEXT, TITLE
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.build import Corpus
    from rayvec.indexing.pca import Axes
    from rayvec.indexing.segments import Source
    from rayvec.indexing.versions import Draft


#: What a version's files are for, by how their names begin.
FILES = {"vectors": "shard-", "documents": "documents", "lexical": "lexical", "transform": "transform"}
#: How the folders of deltas are named.
DELTA = "delta-"


class IndexConfig(Config):
    """What to index, how, and how good it must be."""

    #: The output of the embed job.
    embeddings: str = ""
    #: Where the versions of the index go: a local or mounted folder.
    output: str = ""
    #: "auto", or a FAISS factory string such as "Flat", "IVF1024,SQ8" or "HNSW32".
    factory: str = AUTO
    #: Dimensions to keep; all of them when null.
    dimensions: PositiveInt | None = None
    #: Which: those of most variance by PCA, or the first, of an encoder trained for that (Matryoshka).
    reduce: Literal["pca", "truncate"] = "pca"
    #: Whether PCA brings all dimensions that it keeps to equal variance.
    whiten: bool = False
    #: recall@10 against exact search that the index must reach; a build that cannot publishes nothing.
    recall_target: float = Field(default=0.95, gt=0, le=1)
    #: Whether to build BM25 over the same documents, for hybrid search; over which columns, and which Snowball stemmer.
    lexical: bool = True
    lexical_columns: tuple[str, ...] = Field(default=(ID, TITLE, TEXT), min_length=1)
    stemmer: Literal["english", "porter"] | None = "english"
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
    from rayvec.indexing.build import Corpus
    from rayvec.indexing.segments import Source

    for key in ("embeddings", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give a folder with --set {key}=DIR")
    dataset = EmbeddingsDataset.open(config.embeddings)
    versions.local_folder(config.output)
    recipe, source = _recipe(config, dataset), Source.of(dataset)
    live = None if config.rebuild else _live(config.output, recipe, source)
    if live is not None:
        return _report(config, live, {}, reused=True)
    seconds: dict[str, float] = {}
    with versions.new_version(config.output) as draft, ray_session():
        facts = build_version(config, Corpus.of(dataset), dataset.payload, draft, seconds)
        manifest = draft.commit({**recipe, **facts, **one_segment(facts, [source])})
    report = _report(config, manifest, seconds, reused=False)
    storage.write_bytes(storage.join(config.output, "config.yaml"), config.to_yaml().encode())
    storage.write_json(storage.join(config.output, "report.json"), report)
    return report


def build_version(
    config: IndexConfig, corpus: Corpus, payload: list[str], draft: Draft, seconds: dict[str, float]
) -> JsonObject:
    """Fill the draft's folder. Returns what the manifest says of it, but for the segment."""
    from rayvec.indexing import build, pca
    from rayvec.indexing.searcher import DOCUMENTS, LEXICAL, TRANSFORM

    spec.choose(config.factory, corpus.count, corpus.dim)
    with timed(seconds, "check"):
        build.check(corpus)
    axes = None
    if config.dimensions is not None:
        with timed(seconds, config.reduce):
            axes = build.axes(corpus, config.seed) if config.reduce == "pca" else None
            corpus = build.reduce(corpus, config.dimensions, method=config.reduce, whiten=config.whiten, found=axes)
    if corpus.projection:
        pca.save(corpus.projection, draft.folder / TRANSFORM)
    chosen = spec.choose(config.factory, corpus.count, corpus.dim_index)
    with timed(seconds, "train"):
        trained, sample = build.train(corpus, chosen, config.seed)
    with timed(seconds, "fill"):
        entries = build.fill(corpus, trained, build.shard_count(corpus, chosen, config.shards), draft.folder)
    with timed(seconds, "documents"):
        build.write_documents(corpus, payload, draft.folder / DOCUMENTS)
    lexical = None
    if config.lexical:
        with timed(seconds, "lexical"):
            lexical = build.write_lexical(corpus, config.lexical_columns, config.stemmer, draft.folder / LEXICAL)
    with timed(seconds, "prove"):
        proof = build.prove(corpus, entries, draft.folder, sample, config.recall_target, config.seed)
    if corpus.projection:
        with timed(seconds, "dimensions"):
            proof["fewer_dimensions"] = _fewer_dimensions(config, corpus, axes)
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


def _fewer_dimensions(config: IndexConfig, corpus: Corpus, axes: Axes | None) -> list[JsonObject]:
    """Exact search in fewer dimensions on a sample, each way, as a table and a picture beside the report."""
    from rayvec.evaluation.trade_offs import draw_dimensions
    from rayvec.indexing import build

    kept, explained = build.compare_dimensions(corpus, axes, config.seed)
    recalls: dict[str, dict[int, float]] = {}
    for row in kept:
        if row.way:
            recalls.setdefault(row.way, {})[row.dimensions] = row.recall
    draw_dimensions(explained, recalls, storage.join(config.output, "dimensions.png"))
    return [{"way": row.way, "dimensions": row.dimensions, "recall@10": round(row.recall, 4)} for row in kept]


def _recipe(config: IndexConfig, dataset: EmbeddingsDataset) -> JsonObject:
    """What decides the index beside the embeddings: the configuration, and what it says of them."""
    settings = config.model_dump(mode="json", exclude={"embeddings", "output", "rebuild"})
    return {
        "encoder": dataset.manifest["encoder"],
        "fingerprint": dataset.fingerprint.model_dump(),
        "payload": dataset.payload,
        "dtype": dataset.manifest["dtype"],
        "config": settings,
    }


def _live(output: str, recipe: JsonObject, source: Source) -> JsonObject | None:
    """The manifest of the live version, if it is whole and of this very recipe over these very embeddings."""
    from rayvec.indexing.segments import segments_of

    if not storage.exists(storage.join(output, versions.CURRENT)):
        return None
    try:
        folder = versions.version_folder(output)
        manifest = versions.read_manifest(folder)
        if any(manifest.get(key) != value for key, value in recipe.items()):
            return None
        sources = [found.manifest_sha256 for segment in segments_of(manifest) for found in segment.sources]
        if sources != [source.manifest_sha256] or manifest["count"] != source.rows:
            return None
        versions.verify(folder, manifest)
    except VerificationError:
        return None
    return manifest


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
        "recall@10_of_reduction": proof.get("recall_of_reduction"),
        "recall@10_in_dimensions": _in_dimensions(proof),
        "latency_ms": proof["latency_ms"],
        "bytes": bytes_by_use(manifest),
        "seconds": seconds,
        "output": config.output,
        "next": f"python -m jobs.serve --recipe {recipe_family(manifest['encoder'])}.serve --set index={config.output}",
    }


def bytes_by_use(manifest: JsonObject) -> dict[str, int]:
    """Bytes of a version's files by what they are for, all segments together."""
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


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write down how long a stage takes, and tell it."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
    sys.stderr.write(f"index: {stage} done in {seconds[stage]:.1f} s\n")
