"""Experiments that train, at their smallest: a random Llama, a few steps, a corpus of sixty texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines._tasks import RetrievalTask
from pipelines.experiments import (
    EfficiencyConfig,
    MaskingConfig,
    PoolingConfig,
    measure_efficiency,
    measure_poolings,
    render_efficiency,
    render_masking,
    render_poolings,
    sweep_masking,
)
from pipelines.recipes import tiny
from pipelines.table import TableConfig, measure_table
from pipelines.train import TrainConfig, train
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.training.stages import Pairs, PairSet, RetrievalSet, Texts
from tests.models import SENTENCES, save_model, tiny_llama

SHORT: dict[str, Any] = {"steps": 2, "batch_size": 4, "max_length": 32, "workers": 0, "trackers": ()}


def texts(folder: Path) -> Texts:
    return Texts(source=SourceConfig(path=str(folder / "texts.jsonl")), min_characters=10)


def short(config: TrainConfig, folder: Path, **changes: Any) -> TrainConfig:
    data = Pairs(sets=(PairSet(name="pairs", path=str(folder / "pairs.jsonl")),))
    return config.replace(**SHORT, data=texts(folder) if config.data.kind == "texts" else data, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama after two short stages, texts, pairs and a small task."""
    folder = tmp_path_factory.mktemp("experiments")
    tiny_llama(folder / "llama")
    rows = [f"{SENTENCES[i % 7]} Number {i}." for i in range(60)]
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(rows))
    )
    pairs = [{"query": row[:30], "positive": row} for row in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "beir/qrels").mkdir(parents=True)
    (folder / "beir/corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(rows))
    )
    (folder / "beir/queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"{t[:40]} {i}"}) + "\n" for i, t in enumerate(rows[:12]))
    )
    (folder / "beir/qrels/test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(12)))
    start = str(folder / "llama")
    for name, config in (("mntp", tiny.mntp()), ("simcse", tiny.simcse())):
        train(short(config, folder, start=start, output=str(folder / name)))
        start = str(folder / name)
    return folder


TASK = {"kind": "retrieval", "name": "beir", "data": "beir"}


def test_every_pooling_of_six_kinds(folder: Path, tmp_path: Path) -> None:
    config = PoolingConfig.parse(
        {
            "encoder": str(folder / "simcse"),
            "simcse": short(tiny.simcse(), folder),
            "tasks": [TASK],
            "root": str(folder),
            "output": str(tmp_path / "p.json"),
        }
    )
    report = measure_poolings(config)
    kinds = ["Uni", "Bi", "Bi + MNTP", "Bi + MNTP + SimCSE", "Uni + SimCSE", "Bi + SimCSE"]
    assert list(report["kinds"]) == kinds
    assert all(set(row) == {"EOS", "mean", "weighted mean"} for row in report["kinds"].values())
    manifest = json.loads((tmp_path / "p.cache/simcse-causal/rayvec.json").read_text())
    assert manifest["attention"] == "causal"
    assert [adapter["stage"] for adapter in manifest["adapters"]] == ["simcse"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "| Uni, mean > Uni, EOS " in render_poolings(report)
    with pytest.raises(UserError, match="output is required"):
        measure_poolings(config.replace(output=""))


def test_an_encoder_only_model_takes_simcse_and_is_a_system(folder: Path, tmp_path: Path) -> None:
    """The paper's BERT and BERT + SimCSE, at their smallest."""
    bert = str(save_model("bert", tmp_path / "bert"))
    run = short(tiny.simcse(), folder, start=bert, attention="native", output=str(tmp_path / "simcse"))
    train(run)
    systems = [
        {"name": "BERT", "encoder": bert, "attention": "native"},
        {"name": "BERT + SimCSE", "encoder": str(tmp_path / "simcse")},
    ]
    table = TableConfig.parse(
        {"systems": systems, "tasks": [TASK], "root": str(folder), "output": str(tmp_path / "t.json")}
    )
    found = measure_table(table)["systems"]
    assert set(found) == {"BERT", "BERT + SimCSE"}
    assert all(0 < row["beir"]["mean"] <= 1 for row in found.values())


def test_masking_by_share_and_way(folder: Path, tmp_path: Path) -> None:
    config = MaskingConfig.parse(
        {
            "probabilities": [0.2, 0.8],
            "mntp": short(tiny.mntp(), folder, start=str(folder / "llama")),
            "tasks": [TASK],
            "root": str(folder),
            "output": str(tmp_path / "m.json"),
        }
    )
    report = sweep_masking(config)
    assert set(report["maskings"]) == {"bert", "all"}
    assert set(report["maskings"]["all"]) == {"0.2", "0.8"}
    assert len(set(report["losses"].values())) == 4
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "| 80%    |" in render_masking(report)
    assert set(report["losses"]) == {"bert 0.2", "bert 0.8", "all 0.2", "all 0.8"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "systems and tasks are required"),
        ({"tasks": [TASK | {"data": "bier"}]}, "bier"),
        ({"root": "nowhere"}, "nowhere/beir"),
        ({"tasks": [TASK, TASK]}, "'beir' stands twice"),
        ({"probabilities": [0.2, 0.2]}, "'all 0.2' stands twice"),
        ({"output": "s3://bucket/m.json"}, "cache = s3://bucket/m.cache .*give a local or mounted folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("pipelines.experiments.train", refuse)
    monkeypatch.chdir(tmp_path)
    values = {
        "mntp": short(tiny.mntp(), folder, start=str(folder / "llama")),
        "tasks": [TASK],
        "root": str(folder),
        "output": str(tmp_path / "m.json"),
    }
    with pytest.raises(UserError, match=message):
        sweep_masking(MaskingConfig.parse(values | options))
    if "probabilities" not in options and "output" not in options:
        common = {"encoder": str(folder / "simcse"), "simcse": short(tiny.simcse(), folder)}
        with pytest.raises(UserError, match=message):
            measure_poolings(PoolingConfig.parse({k: v for k, v in values.items() if k != "mntp"} | common | options))
    assert not list(tmp_path.rglob("rayvec.json")) and not (tmp_path / "s3:").exists()


def test_shares_that_round_alike_are_systems_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.experiments.train", refuse)
    run = short(tiny.mntp(), folder, start=str(folder / "llama"))
    config = MaskingConfig(
        probabilities=(0.12, 0.125), mntp=run, tasks=(RetrievalTask(name="beir", data="beir"),), root=str(folder),
        output=str(tmp_path / "m.json"),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="trained"):
        sweep_masking(config)


def refuse(config: TrainConfig) -> None:
    raise AssertionError(f"trained {config.output}")


def test_score_by_supervised_step_from_each_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = RetrievalSet(name="beir", data=str(folder / "beir"))
    run = short(tiny.supervised(), folder, evaluation=(measured,), evaluate_every=1)
    config = EfficiencyConfig(encoder=str(folder / "simcse"), supervised=run, output=str(tmp_path / "e.json"))
    report = measure_efficiency(config)
    assert report["metrics"] == ["eval/beir/ndcg@10"]
    assert list(report["curves"]) == ["Uni", "Bi", "Bi + MNTP", "Bi + MNTP + SimCSE"]
    assert all([row["step"] for row in rows] == [0, 1, 2] for rows in report["curves"].values())
    # Where a start is read causally, its first score is another than that of the same weights read both ways.
    first = {kind: rows[0]["eval/beir/ndcg@10"] for kind, rows in report["curves"].items()}
    assert first["Uni"] != first["Bi"]
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert "| Bi + MNTP + SimCSE " in render_efficiency(report)
    # The same output, asked about another encoder: none of the first one's starts is taken for its.
    found = [json.loads(path.read_text()) for path in tmp_path.glob("e.cache/start-*/rayvec.json")]
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.experiments.train", refuse)
        with pytest.raises(AssertionError, match="trained"):
            measure_efficiency(config.replace(encoder="tiny"))
    assert len(list(tmp_path.glob("e.cache/start-*/rayvec.json"))) == len(found) + 1 == 5
    with pytest.raises(UserError, match=r"cache = s3://bucket/e\.cache .*give a local or mounted folder"):
        measure_efficiency(config.replace(output="s3://bucket/e.json"))
    with pytest.raises(UserError, match=r"supervised\.evaluation is required"):
        measure_efficiency(config.replace(supervised=run.replace(evaluation=())))
