"""What the advisor tells: its points, which of them are worth having, the one it recommends, and the page about it.

Knows numbers and names. Knows no Ray and no vectors.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.report import recipe_family
from rayvec import uris
from rayvec.evaluation.report import markdown
from rayvec.evaluation.trade_offs import Choice, pareto
from rayvec.indexing.spec import human_bytes

if TYPE_CHECKING:
    from pipelines._advise_config import AdviseConfig

#: Sizes this close are the same size: then the faster one is the cheaper.
SAME_SIZE = 1.1
HEADER = ("Pareto", "dimensions", "index", "bytes/vector", "recall@10", "nDCG@10", "queries/s", "≈ of all", "build s")


@dataclass(frozen=True)
class Point:
    """One point of the grid. Speeds are of one core: measured on the sample, and estimated for all vectors."""

    way: str
    dimensions: int
    template: str
    #: The factory string that builds it over all vectors.
    factory: str
    bytes_per_vector: float
    recall: float
    ndcg: float | None
    queries_per_second: float
    queries_per_second_of_all: float
    build_seconds: float
    search: dict[str, int]
    fidelity: float
    pareto: bool = False

    @property
    def reduced(self) -> str:
        """Its dimensions, and how they became so few."""
        return f"{self.dimensions} {self.way}".rstrip() if self.way else f"{self.dimensions} (all)"

    @property
    def form(self) -> str:
        """Its kind of index, whatever the number of lists."""
        return re.sub(r"\{\w+\}", "…", self.template)

    def row(self) -> list[str]:
        """Its line of the table."""
        ndcg = "" if self.ndcg is None else f"{self.ndcg:.3f}"
        numbers = [f"{self.bytes_per_vector:,.0f}", f"{self.recall:.3f}", ndcg, f"{self.queries_per_second:,.0f}"]
        numbers += [f"{self.queries_per_second_of_all:,.0f}", f"{self.build_seconds:.1f}"]
        return ["★" if self.pareto else "", self.reduced, self.form, *numbers]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def marked(points: Sequence[Point]) -> list[Point]:
    """The points from small to large, those marked that no other beats in bytes, recall and speed."""
    order = sorted(points, key=lambda point: (point.bytes_per_vector, -point.recall))
    if not order:
        return []
    best = pareto([[point.bytes_per_vector, -point.recall, -point.queries_per_second_of_all] for point in order])
    return [replace(point, pareto=bool(flag)) for point, flag in zip(order, best, strict=True)]


def recommended(points: Sequence[Point], target: float) -> Point | None:
    """The smallest that reaches the target; of those about as small, the fastest. None when none reaches it."""
    good = [point for point in points if point.recall >= target]
    if not good:
        return None
    least = min(point.bytes_per_vector for point in good)
    return max(
        (point for point in good if point.bytes_per_vector <= SAME_SIZE * least),
        key=lambda point: point.queries_per_second_of_all,
    )


def command(config: AdviseConfig, encoder: str, point: Point) -> str:
    """What builds this point over all vectors, as a shell takes it."""
    settings: dict[str, Any] = {"embeddings": config.embeddings, "output": uris.join(config.output, "index")}
    settings["factory"] = point.factory
    if point.way:
        settings |= {"dimensions": point.dimensions, "reduce": point.way.partition("+")[0]}
    if point.way == "pca+whiten":
        settings["whiten"] = "true"
    settings["recall_target"] = _build_target(config.recall_target, point)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return shlex.join(["python", "-m", "jobs.index", "--recipe", f"{recipe_family(encoder)}.index", *words])


def _build_target(target: float, point: Point) -> float:
    """A build compares with exact search in the dimensions it keeps: there it must be as true as the trial was."""
    return max(target, math.floor(point.fidelity * 100) / 100) if point.search and point.way else target


def choices(points: Sequence[Point]) -> list[Choice]:
    """The points for a picture."""
    return [Choice(p.bytes_per_vector, p.recall, p.queries_per_second_of_all, p.form, p.reduced) for p in points]


def table(points: Sequence[Point]) -> str:
    """The points as Markdown; columns that are empty throughout are left out."""
    rows = [point.row() for point in points]
    if all(point.queries_per_second == point.queries_per_second_of_all for point in points):
        rows = [[*row[:7], "", row[8]] for row in rows]  # the sample is all there is
    kept = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
    return markdown([HEADER[i] for i in kept], [[row[i] for i in kept] for row in rows])


def dimension_table(rows: Sequence[dict[str, Any]]) -> str:
    """recall@10, and nDCG@10 where it is known, a row for each number of dimensions, a column for each way."""
    ways = list(dict.fromkeys(row["way"] for row in rows if row["way"]))
    numbers = list(dict.fromkeys(row["dimensions"] for row in rows if row["way"]))
    found = {(row["dimensions"], row["way"]): row for row in rows}
    lines = [[str(number), *(_kept(found.get((number, way))) for way in ways)] for number in sorted(numbers)[::-1]]
    whole = [[f"{row['dimensions']} (all)", *([_kept(row)] * len(ways))] for row in rows if not row["way"]]
    return markdown(["dimensions", *ways], whole + lines)


def _kept(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ndcg = row.get("ndcg@10")
    return f"{row['recall@10']:.3f}" + ("" if ndcg is None else f" (nDCG {ndcg:.3f})")


def page(report: dict[str, Any]) -> str:
    """advice.md: the recommendation, all points, dimensions, and how it was measured."""
    points = [Point(**row) for row in report["points"]]
    lines = ["# Which dimensions, which index", "", _measured(report), "", *_closing(report), "", "## All points", ""]
    lines += ["![bytes, recall and speed](advice.png)", "", table(points), "", NOTES, ""]
    lines += [f"- not measured: {row['point']}: {row['error']}" for row in report["failed"]]
    lines += [
        "",
        "## Fewer dimensions",
        "",
        "recall@10 of exact search in fewer dimensions against exact search in all:",
    ]
    lines += ["", dimension_table(report["fewer_dimensions"]), "", "![explained variance](dimensions.png)", ""]
    return "\n".join(lines)


def summary(report: dict[str, Any]) -> str:
    """What a shell shows: the points that no other beats, dimensions, and the recommendation."""
    front = [Point(**row) for row in report["points"] if row["pareto"]]
    lines = [_measured(report), "", table(front), ""]
    lines += ["Exact search in fewer dimensions:", "", dimension_table(report["fewer_dimensions"]), ""]
    lines += [f"not measured: {row['point']}: {row['error']}" for row in report["failed"]]
    return "\n".join([*lines, *_closing(report)])


NOTES = (
    "★ no other point is as small, as good and as fast (estimated for all vectors). recall@10 is against exact search "
    "over the whole vectors, at the least effort that reaches the target where the index has one; queries/s are single "
    "queries on one core, projection included, on the sample; `≈ of all` estimates them for all vectors from how each "
    "kind grows (a scan with n, lists with √n, a graph with log n)."
)


def _measured(report: dict[str, Any]) -> str:
    judged = report["judged_queries"]
    asked = f" and {judged:,} with judgements" if judged else ""
    return (
        f"{report['vectors']:,} vectors of {report['dimensions']} dimensions; measured on {report['sample']:,} of them "
        f"with {report['queries']} held-out queries{asked}; {report['cores']} cores built each index."
    )


def _closing(report: dict[str, Any]) -> list[str]:
    point = Point(**report["recommended"])
    target = report["recall_target"]
    head = (
        f"**Recommended**: {point.reduced}, {point.form}: the cheapest at recall@10 ≥ {target}"
        if report["reached"]
        else f"**No point reaches recall@10 ≥ {target}**; the best is {point.reduced}, {point.form}"
    )
    ndcg = "" if point.ndcg is None else f", nDCG@10 {point.ndcg:.3f}"
    facts = (
        f"recall@10 {point.recall:.3f}{ndcg}, {point.bytes_per_vector:,.0f} bytes a vector, "
        f"{human_bytes(report['bytes'])} for all {report['vectors']:,}, about "
        f"{point.queries_per_second_of_all:,.0f} queries/s on one core"
    )
    return [f"{head} ({facts}). It is built by", "", f"    {report['next']}"]
