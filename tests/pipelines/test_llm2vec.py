"""The whole line as one job: stages chained, killed in the middle and gone on, measured before it is swapped in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines.embed import EmbedConfig
from pipelines.llm2vec import LineConfig, _measure, llm2vec, steps
from pipelines.measure import MeasureConfig
from pipelines.recipes import get_recipe, recipes
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError, VerificationError
from rayvec.serving.config import ServeConfig
from rayvec.training.stages import Texts
from tests.runs import config as train_config
from tests.runs import write_inputs

torch.set_num_threads(1)


def line(inputs: Path, output: Path, **changes: Any) -> LineConfig:
    """The whole line over a random Llama, four steps a stage, in this process."""
    stages = {name: train_config(inputs, Path("unused"), name) for name in ("mntp", "simcse", "supervised")}
    texts = Texts(source=SourceConfig())
    values: dict[str, Any] = {
        "output": str(output),
        "corpus": SourceConfig(path=str(inputs / "docs.jsonl")),
        "mntp": stages["mntp"].replace(data=texts),
        "simcse": stages["simcse"].replace(data=texts, start=""),
        "supervised": stages["supervised"].replace(start=""),
        "embed": EmbedConfig(unit_rows=16),
    }
    return LineConfig(**{**values, **changes})


def beir(folder: Path) -> Path:
    """A task that hashed words solve: each query is a part of its document."""
    folder.mkdir()
    texts = [f"alpha{i} beta{i} gamma{i} common words of all" for i in range(30)]
    rows = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"alpha{i} gamma{i}"}) + "\n" for i in range(30))
    )
    (folder / "qrels").mkdir()
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(30))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.mark.parametrize("name", recipes(LineConfig))
def test_every_recipe_chains_its_stages(name: str) -> None:
    config = get_recipe(name, LineConfig).replace(output="/home/line", corpus=SourceConfig(path="/data/docs"))
    found = {step.name: step.run.args[0] for step in steps(config, "/home/line")}  # type: ignore[attr-defined]
    trained = [stage for stage in ("mntp", "simcse", "supervised") if stage in found]
    assert [found[stage].start for stage in trained[1:]] == [f"/home/line/{stage}" for stage in trained[:-1]]
    assert found["embed"].encoder == (f"/home/line/{trained[-1]}" if trained else config.embed.encoder)
    assert found["embed"].source.path == "/data/docs"
    assert found["index"].embeddings == found["embed"].output
    assert found["swap"].index == found["index"].output
    assert found["swap"].encoder == found["embed"].encoder
    for stage in trained:
        if found[stage].data.kind == "texts":
            assert found[stage].data.source.path == "/data/docs"


def test_texts_that_a_stage_names_stay_its_own() -> None:
    own = Texts(source=SourceConfig(kind="pydocs"))
    config = get_recipe("tiny.line", LineConfig)
    assert config.mntp is not None
    config = config.replace(corpus=SourceConfig(path="/data"), mntp=config.mntp.replace(data=own))
    found = {step.name: step.run.args[0] for step in steps(config, "/x")}  # type: ignore[attr-defined]
    assert found["mntp"].data == own and found["simcse"].data.source.path == "/data"


def test_pairs_are_read_after_the_instruction_that_the_encoder_keeps() -> None:
    def asked(name: str) -> Any:
        config = get_recipe(name, LineConfig).replace(corpus=SourceConfig(path="/data"), pairs="/pairs.jsonl")
        return next(step for step in steps(config, "/x") if step.name == "supervised").run.args[0]  # type: ignore[attr-defined]

    assert asked("tiny.line").data.instruction is None
    published = asked("llama3_8b.line")
    assert published.data.instruction == published.prompts.instructions["query"] != ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"output": ""}, "output is required"), ({"corpus": {}}, "corpus.path"), ({"least": 0.5}, "least")],
)
def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    config = LineConfig(**{"output": str(tmp_path), "corpus": {"path": "x"}, **changes})
    with pytest.raises(UserError, match=told):
        llm2vec(config)


@pytest.mark.cluster
def test_killed_in_the_middle_it_goes_on_and_runs_nothing_twice(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = line(write_inputs(tmp_path / "in"), tmp_path / "out")
    file = tmp_path / "line.yaml"
    file.write_text(config.to_yaml())
    command = [sys.executable, "-m", "jobs.llm2vec", "--config", str(file)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = tmp_path / "out" / "line.json"
    deadline = time.monotonic() + 240
    while not (record.exists() and "simcse" in record.read_text()) and time.monotonic() < deadline:
        assert driver.poll() is None, "the line ended by itself"
        time.sleep(0.05)
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    psutil.wait_procs(started, timeout=60)  # its Ray ends with it
    before = json.loads(record.read_text())
    assert {"mntp", "simcse"} <= before.keys() and "swap" not in before, "the line was over before the kill"
    weights = {
        path: path.stat().st_mtime_ns for name in ("mntp", "simcse") for path in _weights(tmp_path / "out" / name)
    }
    llm2vec(config)
    assert "[1/6] train MNTP: mask words, predict them from both sides: done already" in capsys.readouterr().out
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
    after = json.loads(record.read_text())
    assert list(after) == ["mntp", "simcse", "supervised", "embed", "index", "swap"]
    assert {name: after[name] for name in before} == before
    served = ServeConfig.from_yaml(str(tmp_path / "out" / "serve.yaml"))
    assert served.encoder == str(tmp_path / "out" / "supervised")
    llm2vec(config)
    assert "all 6 stages are done already" in capsys.readouterr().out
    assert json.loads(record.read_text()) == after


def _weights(folder: Path) -> list[Path]:
    found = list(folder.rglob("*.safetensors"))
    assert found
    return found


def test_an_encoder_under_the_least_is_refused(tmp_path: Path) -> None:
    data = beir(tmp_path / "beir")
    measuring = MeasureConfig(
        data=str(data), systems=("dense",), encoder="hash:8", output=str(tmp_path / "scores.json")
    )
    config = LineConfig(measure=measuring, least=0.99)
    with pytest.raises(VerificationError, match=r"least = 0\.99: not swapped in"):
        _measure(config, measuring, str(tmp_path / "live.yaml"))
    assert not (tmp_path / "measured.json").exists()


@pytest.mark.cluster
def test_a_worse_encoder_is_not_swapped_in_and_a_swap_keeps_the_way_back(ray_cluster: None, tmp_path: Path) -> None:
    """Hashed words of 256 dimensions are live; 8 dimensions are worse, until that is allowed."""
    data = beir(tmp_path / "beir")
    live = tmp_path / "live.yaml"

    def run(name: str, dimensions: int, **changes: Any) -> None:
        llm2vec(
            LineConfig(
                output=str(tmp_path / name),
                corpus=SourceConfig(path=str(data / "corpus.jsonl")),
                embed=EmbedConfig(encoder=f"hash:{dimensions}"),
                measure=MeasureConfig(data=str(data), systems=("dense",)),
                live=str(live),
                **changes,
            )
        )

    run("first", 256)
    assert ServeConfig.from_yaml(str(live)).index == str(tmp_path / "first" / "index")
    with pytest.raises(VerificationError, match="not swapped in; train further, or raise tolerance"):
        run("worse", 8)
    assert ServeConfig.from_yaml(str(live)).encoder == "hash:256"
    run("worse", 8, tolerance=1.0)
    assert ServeConfig.from_yaml(str(live)).encoder == "hash:8"
    assert ServeConfig.from_yaml(str(tmp_path / "live.previous.yaml")).encoder == "hash:256"
