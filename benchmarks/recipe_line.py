"""Does each stage of the tiny recipe line add what the paper says, and by more than the seeds differ?

    python benchmarks/recipe_line.py --output DIR [--stsb FILE.csv.gz] [--seeds 3] [--set mntp.steps=300 ...]

For each seed: base → MNTP → SimCSE → supervised, and supervised straight from the base and from MNTP, by the recipes of
`pipelines/recipes/tiny.py`, in this process. Measured after each: retrieval on held-out docstrings (summary line → rest
of the docstring, dense alone), and on STS-B the rank correlation and how the vectors lie. Writes DIR/line.json, line.md
and line.png. A run that was interrupted goes on; what is done is not done again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from jobs._cli import main as run_command
from pipelines.measure import MeasureConfig, measure
from pipelines.recipes import tiny
from pipelines.train import TrainConfig, train
from rayvec import storage
from rayvec.config import parse_overrides
from rayvec.errors import UserError
from rayvec.evaluation.report import markdown, p_value
from rayvec.evaluation.statistics import compare
from rayvec.evaluation.sts import SentencePairs, cosines, read_pairs, spearman

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder

RECIPES = {"mntp": tiny.mntp, "simcse": tiny.simcse, "supervised": tiny.supervised}
#: The base as a decoder is best read (SGPT), and as the line starts: both ways, nothing trained. No seed moves them.
BASES: dict[str, dict[str, Any]] = {
    "causal, weighted mean": {"attention": "causal", "pooling": "weighted_mean"},
    "bidirectional, untrained": {"attention": "bidirectional", "pooling": "mean"},
}
START = "bidirectional, untrained"
#: STS-B judges from 0 to 5; pairs from here on count as alike in alignment (Gao et al. 2021, section 7).
ALIKE = 4.0
METRICS = {
    "ndcg@10": "nDCG@10",
    "recall@100": "recall@100",
    "stsb": "STS-B",
    "alignment": "align",
    "uniformity": "unif",
}
#: Those in which the order is looked at; higher is better.
COMPARED = ("ndcg@10", "recall@100", "stsb")


@dataclass(frozen=True)
class Step:
    """A stage of the line: its name in the tables, its folder, its recipe and the step that it starts from."""

    name: str
    folder: str
    recipe: str
    start: str


LINE = (
    Step("+ MNTP", "mntp", "mntp", START),
    Step("+ MNTP + SimCSE", "simcse", "simcse", "+ MNTP"),
    Step("+ MNTP + SimCSE + supervised", "supervised-simcse", "supervised", "+ MNTP + SimCSE"),
    Step("+ MNTP + supervised", "supervised-mntp", "supervised", "+ MNTP"),
    Step("supervised alone", "supervised-base", "supervised", START),
)
#: What the paper's tables say should be above what: each stage above the one before, supervised above unsupervised,
#: and supervised training better after MNTP than without.
ORDER = (
    ("+ MNTP", "causal, weighted mean"),
    ("+ MNTP", "bidirectional, untrained"),
    ("+ MNTP + SimCSE", "+ MNTP"),
    ("+ MNTP + SimCSE + supervised", "+ MNTP + SimCSE"),
    ("+ MNTP + SimCSE + supervised", "supervised alone"),
    ("+ MNTP + supervised", "supervised alone"),
)


@dataclass(frozen=True)
class Line:
    """What is trained and measured, and where it goes."""

    output: Path
    decoder: str
    documents: str
    overrides: dict[str, Any]
    pairs: SentencePairs | None
    queries: int
    max_length: int

    def base(self, name: str) -> Path:
        """The folder of an untrained encoder, written where it is not there yet."""
        from rayvec.modeling.encoder import TextEncoder

        folder = self.output / "base" / str(BASES[name]["attention"])
        if not (folder / "rayvec.json").exists():
            TextEncoder.from_decoder(self.decoder, max_length=self.max_length, device="cpu", **BASES[name]).save(folder)
        return folder

    def config(self, step: Step, seed: int, start: Path) -> TrainConfig:
        """The recipe of a step with this run's documents, seed and changes."""
        config = RECIPES[step.recipe]()
        data: dict[str, Any] = {"source": {"kind": "parquet", "path": self.documents}, "exclude_held_out": True}
        if config.data.kind == "pairs":
            data = {"sets": [{"name": "pydocs", "path": self.documents}]}
        output = str(self.output / f"seed-{seed}" / step.folder)
        own = {"data": data, "seed": seed, "start": str(start), "output": output, "workers": 0}
        return config.updated(own, self.overrides.get(step.recipe, {}))

    def encoders(self, seed: int) -> Iterator[tuple[str, Path]]:
        """Name and folder of each encoder of a seed, in turn, each trained where it is not there yet."""
        folders = {START: self.base(START)}
        for step in LINE:
            config = self.config(step, seed, folders[step.start])
            report = train(config)
            say(f"seed {seed}  {step.name}: loss {report['first_loss']:.3g} → {report['last_loss']:.3g}")
            folders[step.name] = Path(config.output)
            yield step.name, folders[step.name]

    def measure(self, folder: Path) -> dict[str, Any]:
        """All metrics of an encoder, and the nDCG@10 of each query; read back where they were measured already."""
        from rayvec.modeling.encoder import TextEncoder

        encoder = TextEncoder.load(folder, device="cpu")
        place = folder / "line" / "retrieval.json"
        known = {"fingerprint": encoder.fingerprint.short, "queries": self.queries, "documents": self.documents}
        saved = folder / "line" / "metrics.json"
        if saved.exists() and (found := storage.read_json(saved))["of"] == known and self._has_sts(found):
            return found
        config = MeasureConfig(encoder=str(folder), data=self.documents, output=str(place), systems=("dense",))
        report = measure(config.replace(max_queries=self.queries))
        values = {name: report["systems"]["dense"][name]["mean"] for name in ("ndcg@10", "recall@100")}
        rows = [json.loads(line) for line in (folder / "line" / "retrieval.queries.jsonl").read_text().splitlines()]
        if self.pairs is not None:
            values |= similarity(encoder, self.pairs)
        found = {"of": known, **values, "per_query": [row["dense"]["ndcg@10"] for row in rows]}
        storage.write_json(saved, found)
        return found

    def _has_sts(self, found: dict[str, Any]) -> bool:
        return self.pairs is None or "stsb" in found


def similarity(encoder: TextEncoder, pairs: SentencePairs) -> dict[str, float]:
    """Spearman's correlation on the pairs, alignment of those alike, uniformity of all sentences (lower is better)."""
    import torch

    from rayvec.losses.contrastive import alignment, uniformity

    first, second = encoder.encode(pairs.first), encoder.encode(pairs.second)
    alike = pairs.scores >= ALIKE
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    return {
        "stsb": spearman(cosines(first, second), pairs.scores).mean,
        "alignment": float(alignment(a[alike], b[alike])),
        "uniformity": float(uniformity(torch.cat([a, b]))),
    }


def collect_documents(output: Path) -> str:
    """The documentation of this environment as a Parquet file, collected once for all seeds and stages."""
    import pyarrow.parquet as pq

    from rayvec.data.pydocs import collect

    path = output / "pydocs.parquet"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        pq.write_table(collect(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return str(path)


def summarize(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By system and metric each seed's value, their mean and standard deviation; and how the paper's order holds.

    found: a system's measurements, one a seed (the bases' repeated).
    """
    systems = {
        name: {metric: spread([row[metric] for row in rows]) for metric in METRICS if metric in rows[0]}
        for name, rows in found.items()
    }
    return {"systems": systems, "order": [ordered(found, systems, *pair) for pair in ORDER]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Each seed's value, their mean and their sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": list(values)}


def ordered(
    found: dict[str, list[dict[str, Any]]], systems: dict[str, dict[str, Any]], higher: str, lower: str
) -> dict[str, Any]:
    """Whether `higher` is above `lower`: by how much, in how many seeds, and for nDCG@10 with what p-value.

    The p-value is of a paired permutation test over queries, each query's value averaged over the seeds.
    """
    a, b = (np.mean([row["per_query"] for row in found[name]], axis=0) for name in (higher, lower))
    result: dict[str, Any] = {"higher": higher, "lower": lower, "p_value": compare(a, b).p_value}
    for metric in COMPARED:
        if metric in systems[higher]:
            pairs = zip(systems[higher][metric]["seeds"], systems[lower][metric]["seeds"], strict=True)
            differences = [high - low for high, low in pairs]
            result[metric] = {**spread(differences), "seeds_above": sum(value > 0 for value in differences)}
    return result


def render(result: dict[str, Any]) -> str:
    """The result as Markdown: the means, the order, each seed."""
    systems, seeds = result["systems"], result["seeds"]
    metrics = [metric for metric in METRICS if metric in systems[START]]
    header = ["encoder", *(METRICS[metric] for metric in metrics)]
    means = [[name, *(shown(row[metric]) for metric in metrics)] for name, row in systems.items()]
    each = [
        [f"{name}, seed {seed}", *(f"{systems[name][metric]['seeds'][i]:.3f}" for metric in metrics)]
        for name in systems
        if name not in BASES
        for i, seed in enumerate(seeds)
    ]
    head = (
        f"{result['queries']:,} held-out docstrings, {result['pairs']:,} STS-B pairs, {len(seeds)} seeds; mean ± "
        "standard deviation over seeds"
    )
    return "\n\n".join([head, markdown(header, means), order_table(result), markdown(header, each)]) + "\n"


def shown(value: dict[str, Any]) -> str:
    """The mean, with ± the deviation where seeds move it."""
    return f"{value['mean']:.3f}" + (f" ± {value['deviation']:.3f}" if value["deviation"] else "")


def order_table(result: dict[str, Any]) -> str:
    """What should be above what: the mean difference, in how many seeds it is so, and nDCG's p-value over queries."""
    metrics = [metric for metric in COMPARED if metric in result["order"][0]]
    header = ["expected", *(cell for metric in metrics for cell in (METRICS[metric], "seeds")), "p (nDCG@10)"]
    rows = [
        [
            f"{row['higher']} > {row['lower']}",
            *(cell for metric in metrics for cell in (f"{row[metric]['mean']:+.3f}", str(row[metric]["seeds_above"]))),
            p_value(row["p_value"]),
        ]
        for row in result["order"]
    ]
    return markdown(header, rows)


def draw(systems: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel a metric: the mean of each encoder as a bar, each seed as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [metric for metric in ("ndcg@10", "stsb") if metric in systems[START]]
    figure = Figure(figsize=(5.5 * len(metrics), 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics), sharey=True)), metrics, strict=True):
        rows = [row[metric] for row in systems.values()]
        axes.barh(range(len(rows)), [row["mean"] for row in rows], height=0.7, color="#56B4E9")
        for place, row in enumerate(rows):
            axes.plot(row["seeds"], [place] * len(row["seeds"]), "o", color="#0072B2", markersize=3.5)
        axes.set_yticks(range(len(rows)), list(systems))
        axes.set_title(METRICS[metric], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()  # shared: the base stands at the top of both
    figure.savefig(path)


def say(line: str) -> None:
    """Progress, beside the result."""
    sys.stderr.write(f"{line}\n")


def run(line: Line, seeds: Sequence[int]) -> dict[str, Any]:
    """Train and measure every seed; write line.json, line.md and line.png."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in BASES:
        found[name] = [line.measure(line.base(name))] * len(seeds)
    for seed in seeds:
        for name, folder in line.encoders(seed):
            found.setdefault(name, []).append(line.measure(folder))
            values = "  ".join(f"{METRICS[m]} {found[name][-1][m]:.3f}" for m in METRICS if m in found[name][-1])
            say(f"seed {seed}  {name}: {values}")
    queries, pairs = len(found[START][0]["per_query"]), 0 if line.pairs is None else len(line.pairs)
    result = {"seeds": list(seeds), "queries": queries, "pairs": pairs, "changes": line.overrides, **summarize(found)}
    (line.output / "line.md").write_text(render(result), encoding="utf-8")
    draw(result["systems"], line.output / "line.png")
    storage.write_json(line.output / "line.json", result)
    return result


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for all of it.")
@click.option("--stsb", metavar="FILE", help="csv of sentence, sentence, score from 0 to 5; may be gzipped.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0, 1, …")
@click.option("--queries", type=click.IntRange(10), default=1000, show_default=True, help="Held-out documents asked.")
@click.option("--max-length", default=128, show_default=True, help="Tokens that every encoder reads when measured.")
@click.option("--documents", metavar="FILE", help="Parquet of docstrings; this environment's by default.")
@click.option("--decoder", default="tiny-decoder", show_default=True, help="What the line starts from.")
@click.option("--set", "overrides", metavar="STAGE.KEY=VALUE", multiple=True, help="Change a recipe: mntp.steps=300.")
def command(
    output: Path,
    stsb: str | None,
    seeds: int,
    queries: int,
    max_length: int,
    documents: str | None,
    decoder: str,
    overrides: tuple[str, ...],
) -> None:
    """Print the tables."""
    changes = parse_overrides(overrides)
    if unknown := sorted(changes.keys() - RECIPES.keys()):
        raise UserError(f"--set {unknown[0]}.…: there is no such stage; known are {', '.join(RECIPES)}")
    pairs = None if stsb is None else read_pairs(stsb)
    output = output.resolve()
    documents = documents or collect_documents(output)
    result = run(Line(output, decoder, documents, changes, pairs, queries, max_length), range(seeds))
    click.echo(render(result), nl=False)


if __name__ == "__main__":
    run_command(command)
