from __future__ import annotations

from pathlib import Path

from rayvec.evaluation.report import bar_chart, table
from rayvec.evaluation.statistics import Estimate

SYSTEMS = {
    "lexical": {"ndcg@10": Estimate(0.6, 0.5, 0.7), "mrr": Estimate(0.5, 0.5, 0.5)},
    "hybrid": {"ndcg@10": Estimate(0.7, 0.6, 0.8), "mrr": Estimate(0.6, 0.61, 0.62)},
}


def test_the_table_has_a_row_a_system() -> None:
    lines = table(SYSTEMS).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["system", ":------", "lexical", "hybrid"]
    assert len({len(line) for line in lines}) == 1


def test_the_chart_is_a_png_of_some_size(tmp_path: Path) -> None:
    bar_chart(SYSTEMS, ["ndcg@10", "mrr"], "toy", str(tmp_path / "c.png"))
    data = (tmp_path / "c.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(data[16:20], "big") > 500
