"""The demo: the whole line on the docs of this Python environment, from the embedded decoder to a served search.

Each step leaves a file that says it is done; a step that is done is skipped, so an interrupted demo goes on where it
stopped. Knows the order of the steps; each step is a pipeline of its own.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveInt

from pipelines._ray import ray_session
from pipelines.embed import EmbedConfig, embed
from pipelines.index import IndexConfig, index
from pipelines.measure import MeasureConfig, measure
from pipelines.report import Report, summary_line
from pipelines.serve import serve
from pipelines.train import TrainConfig, train
from rayvec import storage
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.serving.config import ServeConfig
from rayvec.training.stages import Pairs, PairSet, Texts

#: The decoder as it is, before any stage: read as decoders are, and with the mask off. Name, attention, pooling.
UNTRAINED = (
    ("base, causal, weighted mean", "causal", "weighted_mean"),
    ("base, bidirectional, mean", "bidirectional", "mean"),
)
SHIPPED = "shipped encoder"
TITLES = {
    "mntp": "train MNTP: mask words, predict them from both sides",
    "simcse": "train SimCSE: two views of a text close, others apart",
    "supervised": "train supervised: summaries find the rest of their docstrings",
}
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


class Step(NamedTuple):
    """What is told when it starts, the file that says it is done, and the work."""

    title: str
    done: Path
    run: Callable[[], Any]


def demo(config: DemoConfig) -> Report:
    """Text to encoder to vectors to index to served search, on the Python docs of this environment."""
    started = time.monotonic()
    home = Path(config.output).absolute()
    home.mkdir(parents=True, exist_ok=True)
    steps = _steps(config, home)
    pending = [step for step in steps if not step.done.exists()]
    if pending:
        with ray_session():
            for number, step in enumerate(steps, 1):
                _run(step, number, len(steps))
    else:
        _say(f"demo: all {len(steps)} steps are done already in {_shown(home)} (remove it to start over)")
    _say("\n" + (home / "table.txt").read_text().rstrip())
    _say("\n" + (home / "answers.txt").read_text().rstrip())
    _say(f"\ndemo: {time.monotonic() - started:.0f} s; everything lies in {_shown(home)}")
    if config.serving:
        _say("")
        return serve(config.serve.replace(index=str(home / "index")))
    return {"seconds": round(time.monotonic() - started, 1), "output": _shown(home), "next": "make serve"}


def _steps(config: DemoConfig, home: Path) -> list[Step]:
    corpus = home / "corpus.parquet"
    texts = Texts(source=SourceConfig(path=str(corpus)), min_characters=60, max_documents=config.train_on)
    pairs = Pairs(sets=(PairSet(name="docstrings", path=str(corpus)),), max_examples=config.train_on)
    stages = {
        "mntp": config.mntp.replace(data=texts),
        "simcse": config.simcse.replace(data=texts, start=str(home / "mntp")),
        "supervised": config.supervised.replace(data=pairs, start=str(home / "simcse")),
    }
    return [
        Step("collect the docs of this Python environment", corpus, partial(_collect, config, corpus)),
        *(
            Step(TITLES[name], home / name / "report.json", partial(_train, stage.replace(output=str(home / name))))
            for name, stage in stages.items()
        ),
        Step(
            "embed the corpus with the shipped encoder", home / "embeddings/report.json", partial(_embed, config, home)
        ),
        Step("index: FAISS and BM25, recall proved", home / "index/report.json", partial(_index, config, home)),
        Step("measure every stage on held-out documents", home / "table.txt", partial(_measure, config, home)),
        Step("ask", home / "answers.txt", partial(_ask, config, home)),
    ]


def _run(step: Step, number: int, total: int) -> None:
    head = f"[{number}/{total}] {step.title}"
    if step.done.exists():
        _say(f"{head}: done already")
        return
    _say(head)
    begin = time.monotonic()
    step.run()
    _say(f"      {time.monotonic() - begin:.0f} s")


def _collect(config: DemoConfig, corpus: Path) -> None:
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
    _told(
        {"documents": table.num_rows, "packages": packages, "to_index": chosen.num_rows},
        "documents",
        "packages",
        "to_index",
    )


def _library(home: Path) -> Path:
    return home / "library.parquet"


def _train(config: TrainConfig) -> None:
    _told(train(config), "steps", "first_loss", "last_loss", "curves")


def _embed(config: DemoConfig, home: Path) -> None:
    source = SourceConfig(path=str(_library(home)), payload="all")
    report = embed(config.embed.replace(source=source, output=str(home / "embeddings")))
    _told(report, "embedded", "tokens", "truncated", "quarantined")


def _index(config: DemoConfig, home: Path) -> None:
    report = index(config.index.replace(embeddings=str(home / "embeddings"), output=str(home / "index")))
    _told(report, "documents", "factory", "recall@10", "latency_ms")


def _measure(config: DemoConfig, home: Path) -> None:
    """One row a system; dense ones by themselves, the shipped one beside BM25 and the hybrid of both."""
    rows: dict[str, Path] = {}
    for name, attention, pooling in UNTRAINED:
        rows[name] = _untrained(home / "systems" / f"{attention}-{pooling}", attention, pooling)
    rows |= {"+ MNTP": home / "mntp", "+ MNTP + SimCSE": home / "simcse", "+ supervised": home / "supervised"}
    results = {}
    for name, encoder in rows.items():
        _say(f"      {name}")
        results[name] = _scores(config, str(encoder), home / "measure" / f"{encoder.name}.json", ("dense",))["dense"]
    _say(f"      {SHIPPED}, BM25 and hybrid")
    last = _scores(config, config.embed.encoder, home / "measure" / "shipped.json", ("dense", "lexical", "hybrid"))
    results |= {SHIPPED: last["dense"], "BM25": last["lexical"], "hybrid (shipped + BM25)": last["hybrid"]}
    _write_table(home, results)


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
    text = "\n".join([head, "", table(estimates), "", *lines, f"chart: {_shown(home / 'table.png')}"])
    storage.write_bytes(home / "table.txt", (text + "\n").encode())


def _ask(config: DemoConfig, home: Path) -> None:
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


def _told(report: Report, *names: str) -> None:
    """A step's own figures, on one line."""
    shown = {name: report[name] for name in names or report if report.get(name) not in (None, {}, [])}
    _say("      " + summary_line(shown))


def _shown(path: Path) -> str:
    """A path as it is shortest from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
