"""The whole line as one job: stages chained, killed in the middle and gone on, measured before it is swapped in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs._cli import resolve
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import LineConfig, _measure, _require_instruction, llm2vec, steps
from pipelines.measure import MeasureConfig
from pipelines.recipes import get_recipe, recipes
from pipelines.train import train
from rayvec.data.source_config import SourceConfig
from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.indexing import versions
from rayvec.serving.config import ServeConfig
from rayvec.training.stages import Pairs, PairSet, Texts
from tests.buckets import s3_server
from tests.runs import config as train_config
from tests.runs import kill_with_children, write_inputs

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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"corpus": {"path": "nowhere.jsonl"}}, r"nowhere\.jsonl does not exist"),
        ({"pairs": "nopairs.jsonl"}, r"no pairs at nopairs\.jsonl"),
        ({"measure": MeasureConfig()}, "data is required"),
        ({"measure": MeasureConfig(data="nowhere")}, "nowhere"),
        ({"measure": MeasureConfig(data="beir", systems=("instruction", "dense"))}, r"--set measure\.instruction="),
        ({"measure": MeasureConfig(data="beir"), "live": "live.yaml"}, "unknown key 'indx'"),
    ],
)
def test_what_the_last_stages_would_refuse_is_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    beir(tmp_path / "beir")
    (tmp_path / "live.yaml").write_text("indx: typo")

    def refuse(config: Any) -> None:
        raise AssertionError(f"trained {config.output}")

    monkeypatch.setattr("pipelines.llm2vec.train", refuse)
    config = line(write_inputs(tmp_path / "in"), tmp_path / "out")
    assert config.supervised is not None
    config = config.replace(supervised=config.supervised.replace(data=Pairs(sets=(PairSet(name="p", path="pydocs"),))))
    with pytest.raises(UserError, match=told):
        llm2vec(config.replace(**changes))


def test_an_instruction_that_a_stage_stores_or_is_given_can_be_measured(tmp_path: Path) -> None:
    measuring = MeasureConfig(systems=("instruction",))
    config = line(write_inputs(tmp_path / "in"), tmp_path / "out", measure=measuring)
    _require_instruction(config, measuring)  # "find it", of its pairs
    bare = config.replace(supervised=None)
    with pytest.raises(UserError, match="the encoder will have none"):
        _require_instruction(bare, measuring)
    _require_instruction(bare, measuring.replace(instruction="Find"))


def test_the_index_lies_where_it_is_told_to(tmp_path: Path) -> None:
    corpus, index = SourceConfig(path="/data"), IndexConfig(output=str(tmp_path / "index"))
    config = LineConfig(output="memory://bucket/line", corpus=corpus, index=index)
    found = {step.name: step for step in steps(config, config.output)}
    assert found["index"].run.args[0].embeddings == "memory://bucket/line/embeddings"  # type: ignore[attr-defined]
    assert found["index"].done == f"{tmp_path}/index/report.json"
    assert found["swap"].run.args[0].index == f"{tmp_path}/index"  # type: ignore[attr-defined]
    assert found["swap"].done == "memory://bucket/line/serve.yaml"


@pytest.mark.cluster
def test_a_second_run_notices_a_corpus_that_has_changed(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_inputs(tmp_path / "in")
    config = line(inputs, tmp_path / "out", simcse=None, supervised=None)
    llm2vec(config)
    corpus = inputs / "docs.jsonl"
    before, times = corpus.read_text(), (corpus.stat().st_atime_ns, corpus.stat().st_mtime_ns)
    corpus.write_text(before + json.dumps({"id": "new", "text": "A document that came later."}) + "\n")
    capsys.readouterr()
    with pytest.raises(MismatchError, match=r"mntp holds a run on data that has changed since"):
        llm2vec(config)
    # Trained as before, embedded and indexed anew, where the message says that this is to be removed.
    again = config.replace(mntp=None, embed=EmbedConfig(encoder=str(tmp_path / "out" / "mntp"), unit_rows=16))
    with pytest.raises(MismatchError, match="embeddings"):
        llm2vec(again)
    shutil.rmtree(tmp_path / "out" / "embeddings")
    llm2vec(again)
    assert json.loads((tmp_path / "out" / "line.json").read_text())["index"]["report"]["documents"] == 61
    assert "stages are done already" not in capsys.readouterr().out
    llm2vec(again)
    assert "all 3 stages are done already" in capsys.readouterr().out
    # The old file again: nothing is trained twice.
    corpus.write_text(before)
    os.utime(corpus, ns=times)
    assert train(steps(config, config.output)[0].run.args[0])["note"] == "was done already"  # type: ignore[attr-defined]


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
    kill_with_children(driver)
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


@pytest.mark.cluster
def test_a_line_in_a_bucket_has_its_index_in_a_folder_and_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = beir(tmp_path / "beir")
    values = [
        f"corpus.path={data}/corpus.jsonl",
        f"index.output={tmp_path}/index",
        f"measure={{data: {data}, systems: [dense]}}",
        "least=0.1",
    ]
    with s3_server(monkeypatch) as bucket:
        overrides = [part for value in [*values, f"output={bucket}/line"] for part in ("--set", value)]
        command = [sys.executable, "-m", "jobs.llm2vec", "--recipe", "hash.line", *overrides]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stderr
        told = run.stdout.partition("python -m jobs.serve --config ")[2].split()[0]
        assert told == f"{bucket}/line/serve.yaml"
        served = resolve(ServeConfig, None, told, ())
        assert (served.encoder, served.index) == ("hash", f"{tmp_path}/index")
        assert versions.current(served.index) == "v1"
