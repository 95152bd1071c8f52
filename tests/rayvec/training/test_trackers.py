"""Trackers with the real libraries, read back by their own readers; mlflow and wandb where they are installed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.training.trackers import IDS, TRACKERS, TrackerName, Trackers, open_trackers, plain, require_trackers

CONFIG = {"stage": {"kind": "mntp", "probability": 0.2}, "text": "x" * 600}
#: Names that not every tracker takes as they are.
VALUES = {"loss": 2.5, "eval/py docs/ndcg@10": 0.25}


def opened(folder: Path, name: TrackerName, said: list[str], start_step: int = 0) -> Trackers:
    folder.mkdir(exist_ok=True)
    return open_trackers([name], folder, run_name="a run", config=CONFIG, start_step=start_step, say=said.append)


class Listed:
    """A tracker that keeps what it is told, until it fails."""

    id, place = "", "here"

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.steps: list[int] = []
        self.closed: list[bool] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.steps.append(step)

    def close(self, *, failed: bool = False) -> None:
        self.closed.append(failed)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    said: list[str] = []
    trackers = opened(tmp_path, "tensorboard", said)
    trackers.log(1, VALUES)
    trackers.log(2, {"loss": 1.5})
    trackers.close()
    assert scalars(tmp_path, "loss") == [(1, 2.5), (2, 1.5)]
    assert scalars(tmp_path, "eval/py_docs/ndcg_at_10") == [(1, 0.25)]
    assert said == [f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}"]
    assert not (tmp_path / IDS).exists()  # its folder says which run it is


def test_tensorboard_shows_a_run_that_was_gone_on_with_as_one(tmp_path: Path) -> None:
    for start_step, values in ((0, [4.0, 3.0, 9.0]), (2, [2.0, 1.0])):
        if start_step:
            time.sleep(1.1)  # TensorBoard reads files by name: within one second of one process, "10" comes before "9"
        trackers = opened(tmp_path, "tensorboard", [], start_step)
        for step, value in enumerate(values, start=start_step + 1):
            trackers.log(step, {"loss": value})
        trackers.close()
    assert scalars(tmp_path, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_a_tracker_that_is_not_installed_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", TRACKERS["mlflow"]._replace(modules=("json", "no_such_module")))
    require_trackers(["tensorboard"])
    with pytest.raises(UserError) as caught:
        require_trackers(["tensorboard", "mlflow"])
    assert str(caught.value) == (
        "trackers: mlflow is not installed (no module no_such_module); pip install mlflow-skinny sqlalchemy alembic, "
        "or leave mlflow out of trackers"
    )


def test_a_tracker_that_fails_is_left_out_and_said_once() -> None:
    said: list[str] = []
    failing, other = Listed(fails_at=2), Listed()
    trackers = Trackers({"wandb": failing, "tensorboard": other}, said.append)
    for step in (1, 2, 3):
        trackers.log(step, VALUES)
    trackers.close(failed=True)
    trackers.close()
    assert failing.steps == [1] and failing.closed == []
    assert other.steps == [1, 2, 3] and other.closed == [True]
    assert said == [
        "trackers: wandb failed and is left out from here on (ConnectionError: the server is gone); metrics.jsonl "
        "holds every number"
    ]


def test_one_that_does_not_open_stops_a_run_at_its_beginning_and_no_later(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(UserError, match=r"^trackers: tensorboard does not open \(\w+: .*; see to it, or leave it out$"):
        opened(tmp_path, "tensorboard", said)
    assert said == []
    trackers = opened(tmp_path, "tensorboard", said, start_step=5)
    trackers.log(6, VALUES)
    trackers.close()
    assert len(said) == 1 and said[0].startswith("trackers: tensorboard failed and is left out")


def test_names_in_letters_that_all_take() -> None:
    assert plain("eval/py docs/ndcg@10") == "eval/py_docs/ndcg_at_10"
    assert plain("loss") == "loss"
    assert plain("a-b.c_d/é%") == "a-b.c_d/__"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # MLflow 3.17's use of SQLAlchemy 2.1
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "mlruns"))  # else the first test's stays set
    monkeypatch.chdir(tmp_path)
    trackers = opened(tmp_path / "run", "mlflow", [])
    trackers.log(1, VALUES)
    trackers.close(failed=True)
    id_ = json.loads((tmp_path / "run" / IDS).read_text(encoding="utf-8"))["mlflow"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    assert client.get_run(id_).info.status == "FAILED"

    said: list[str] = []
    trackers = opened(tmp_path / "run", "mlflow", said, start_step=1)
    trackers.log(2, {"loss": 1.5})
    trackers.close()
    experiment = client.get_experiment_by_name("rayvec")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (id_, "a run", "FINISHED")
    assert id_ in said[0]
    assert run.data.params["stage.kind"] == "mntp" and run.data.params["stage.probability"] == "0.2"
    assert len(run.data.params["text"]) == 500
    assert [(m.step, m.value) for m in client.get_metric_history(id_, "loss")] == [(1, 2.5), (2, 1.5)]
    assert run.data.metrics["eval/py_docs/ndcg_at_10"] == 0.25
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] in ([], ["mlruns"])


def test_wandb_offline_keeps_its_run_and_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    for start_step in (0, 1):
        trackers = opened(tmp_path, "wandb", said, start_step)
        trackers.log(start_step + 1, VALUES)
        trackers.close()
    id_ = json.loads((tmp_path / IDS).read_text(encoding="utf-8"))["wandb"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{id_}.wandb"))
    assert files and all(b"eval/py_docs/ndcg_at_10" in file.read_bytes() for file in files)
    assert all(line.startswith(f"W&B offline, wandb sync {tmp_path / 'wandb' / 'offline-run-'}") for line in said)
    assert len(said) == 2
