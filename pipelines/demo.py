"""The demo: the whole line on the docs of this Python environment, from the embedded decoder to a served search.

Each step leaves a file that says it is done; a step that is done is skipped, so an interrupted demo goes on where it
stopped. Knows the order of the steps; each step is a pipeline of its own.
"""

from __future__ import annotations

import os
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from pipelines._ray import ray_session
from pipelines._steps import Line, Step, say, shown
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import embed_step, index_step, train_steps
from pipelines.measure import MeasureConfig, measure
from pipelines.report import Report
from pipelines.serve import serve
from pipelines.train import TrainConfig
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.serving.config import ServeConfig
from rayvec.training.stages import Pairs, PairSet, Texts

#: The decoder as it is, before any stage: read as decoders are, and with the mask off. Name, attention, pooling.
UNTRAINED = (
    ("base, causal, weighted mean", "causal", "weighted_mean"),
    ("base, bidirectional, mean", "bidirectional", "mean"),
)
SHIPPED = "shipped encoder"
METRICS = ("ndcg@10", "recall@10")


class DemoConfig(Config):
    """The steps' own configurations; the demo fills in where each finds what the one before left."""

    output: str = "runs/demo"
    #: Whose docs are indexed: names of distributions, `python` for the standard library; none takes all installed.
    #: Training and measuring use them all.
    packages: tuple[str, ...] = ()
    #: Documents and pairs that the short training runs draw from.
    train_on: PositiveInt = 20_000
    mntp: TrainConfig
    simcse: TrainConfig
    supervised: TrainConfig
    embed: EmbedConfig
    index: IndexConfig
    measure: MeasureConfig
    serve: ServeConfig
    queries: tuple[str, ...]
    hits: PositiveInt = 3
    #: End after the queries, without serving.
    serving: bool = True


def demo(config: DemoConfig) -> Report:
    """Text to encoder to vectors to index to served search, on the Python docs of this environment."""
    started = time.monotonic()
    if not uris.is_local(config.output):
        raise UserError(f"output = {config.output}: give a local or mounted folder with --set output=DIR")
    home = uris.local_path(config.output).absolute()
    home.mkdir(parents=True, exist_ok=True)
    line = Line(_steps(config, home))
    if line.pending:
        with ray_session():
            line.run()
    else:
        say(f"demo: all {len(line.steps)} steps are done already in {shown(home)} (remove it to start over)")
    say("\n" + (home / "table.txt").read_text().rstrip())
    say("\n" + (home / "answers.txt").read_text().rstrip())
    say(f"\ndemo: {time.monotonic() - started:.0f} s; everything lies in {shown(home)}")
    if config.serving:
        say("")
        return serve(config.serve.replace(index=str(home / "index")))
    return {"seconds": round(time.monotonic() - started, 1), "output": shown(home), "next": "make serve"}


def _steps(config: DemoConfig, home: Path) -> list[Step]:
    corpus = home / "corpus.parquet"
    source = SourceConfig(path=str(corpus))
    texts = Texts(source=source, min_characters=60, exclude_held_out=True, max_documents=config.train_on)
    pairs = Pairs(sets=(PairSet(name="docstrings", path=str(corpus)),), max_examples=config.train_on)
    stages = {
        "mntp": config.mntp.replace(data=texts),
        "simcse": config.simcse.replace(data=texts),
        "supervised": config.supervised.replace(data=pairs),
    }
    library = SourceConfig(path=str(_library(home)), payload="all")
    title = "embed the corpus with the shipped encoder"
    return [
        Step("collect the docs of this Python environment", str(corpus), partial(_collect, config, corpus)),
        *train_steps(stages, str(home)),
        embed_step(config.embed.replace(source=library), str(home), title),
        index_step(config.index.replace(output=str(home / "index")), str(home)),
        Step("measure every stage on held-out documents", str(home / "table.txt"), partial(_measure, config, home)),
        Step("ask", str(home / "answers.txt"), partial(_ask, config, home)),
    ]


def _collect(config: DemoConfig, corpus: Path) -> Report:
    """All that is installed to train on, and the packages to index, in random order: a first part is a fair sample."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from rayvec.data import pydocs

    table = pydocs.collect(workers=os.cpu_count() or 1)
    chosen = table
    if config.packages:
        chosen = table.filter(pc.is_in(table.column("package"), value_set=pa.array(config.packages)))
    storage.write_parquet(_library(corpus.parent), chosen)
    order = np.random.default_rng(0).permutation(table.num_rows)
    storage.write_parquet(corpus, table.take(order))
    packages = len(table.column("package").unique())
    return {"documents": table.num_rows, "packages": packages, "to_index": chosen.num_rows}


def _library(home: Path) -> Path:
    return home / "library.parquet"


def _measure(config: DemoConfig, home: Path) -> Report:
    """One row a system; dense ones by themselves, the shipped one beside BM25 and the hybrid of both."""
    rows: dict[str, Path] = {}
    for name, attention, pooling in UNTRAINED:
        rows[name] = _untrained(home / "systems" / f"{attention}-{pooling}", attention, pooling)
    rows |= {"+ MNTP": home / "mntp", "+ MNTP + SimCSE": home / "simcse", "+ supervised": home / "supervised"}
    results = {}
    for name, encoder in rows.items():
        say(f"      {name}")
        results[name] = _scores(config, str(encoder), home / "measure" / f"{encoder.name}.json", ("dense",))["dense"]
    say(f"      {SHIPPED}, BM25 and hybrid")
    last = _scores(config, config.embed.encoder, home / "measure" / "shipped.json", ("dense", "lexical", "hybrid"))
    results |= {SHIPPED: last["dense"], "BM25": last["lexical"], "hybrid (shipped + BM25)": last["hybrid"]}
    _write_table(home, results)
    return {}


def _untrained(folder: Path, attention: Any, pooling: Any) -> Path:
    from rayvec.modeling.encoder import TextEncoder

    if not (folder / "rayvec.json").exists():
        TextEncoder.from_decoder("tiny-decoder", attention=attention, pooling=pooling).save(folder)
    return folder


def _scores(config: DemoConfig, encoder: str, output: Path, systems: tuple[str, ...]) -> dict[str, Any]:
    """The systems' metrics; measured before, they are read."""
    corpus = str(output.parent.parent / "corpus.parquet")
    if output.exists():
        report = storage.read_json(output)
    else:
        report = measure(config.measure.replace(data=corpus, encoder=encoder, output=str(output), systems=systems))
    return {**report["systems"], "comparisons": report["comparisons"]}


def _write_table(home: Path, results: dict[str, Any]) -> None:
    from rayvec.evaluation.report import bar_chart, p_value, table
    from rayvec.evaluation.statistics import Estimate

    estimates: dict[str, dict[str, Estimate]] = {
        name: {metric: Estimate(**row[metric]) for metric in METRICS} for name, row in results.items()
    }
    shipped = storage.read_json(home / "measure" / "shipped.json")
    head = (
        f"Which docstring does this summary line belong to? {shipped['queries']:,} held-out documents, "
        f"{shipped['documents']:,} to choose from; mean [95 % interval]"
    )
    lines = [
        f"hybrid - BM25: {c['difference']:+.3f} {c['metric']}, {p_value(c['p_value'])}"
        for c in shipped["comparisons"]
        if (c["a"], c["b"]) == ("hybrid", "lexical") and c["metric"] in METRICS
    ]
    bar_chart(estimates, METRICS, "Each stage's worth", str(home / "table.png"))
    text = "\n".join([head, "", table(estimates), "", *lines, f"chart: {shown(home / 'table.png')}"])
    storage.write_bytes(home / "table.txt", (text + "\n").encode())


def _ask(config: DemoConfig, home: Path) -> Report:
    """The example queries, hybrid, as the search page would answer them."""
    from rayvec.indexing.hybrid import hybrid
    from rayvec.indexing.searcher import Index
    from rayvec.modeling.encoder import load_encoder

    opened = Index.open(home / "index")
    encoder = load_encoder(config.embed.encoder)
    encoder.fingerprint.require(opened.fingerprint, mine="encoder", theirs="index")
    depth = max(100, config.hits)
    vectors_QD = encoder.encode(list(config.queries), encoder.instructions.get("query"))
    fused = hybrid(opened.lexical(config.queries, depth), opened.dense(vectors_QD, depth), config.hits)
    lines = []
    for query, rows in zip(config.queries, fused.rows, strict=True):
        lines.append(f"? {query}")
        for hit in opened.documents(rows):
            lines.append(f"  {hit['id']}  ({hit['package']} {hit['version']}, {hit['file']}:{hit['line']})")
            lines.append(f"      {textwrap.shorten(hit['text'], 100, placeholder=' …')}")
    storage.write_bytes(home / "answers.txt", ("\n".join(lines) + "\n").encode())
    return {}
