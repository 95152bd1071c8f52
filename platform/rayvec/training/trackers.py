"""Trackers: where a run's numbers go beside metrics.jsonl. TensorBoard, MLflow and W&B, a row each in one table.

Nothing leaves the machine unless its user set that up: MLflow writes a database into the run's folder unless
MLFLOW_TRACKING_URI names a server, W&B works offline unless one has logged in or set WANDB_MODE. A run that is gone on
with goes on in the same MLflow and W&B run. Knows numbers by name. Knows no curves and no training.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from rayvec import __version__, storage
from rayvec.errors import UserError

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
#: The runs' ids, by tracker, in the run's folder.
IDS = "trackers.json"
PROJECT = "rayvec"
#: MLflow takes so many parameters in one call, of so many characters each.
PARAMETERS_PER_CALL, PARAMETER_CHARACTERS = 100, 500


class Tracker(Protocol):
    """An open run of one tracker."""

    #: By which the run is found again; empty where the folder alone says it.
    id: str
    #: Where a person finds it.
    place: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name; a slash in a name makes a group."""

    def close(self, *, failed: bool = False) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is opened with."""

    #: The run's training folder.
    folder: Path
    run_name: str
    config: Mapping[str, Any]
    #: The step that the run goes on from; what came after it is logged again.
    start_step: int
    #: The id that an earlier start of this run was given, or nothing.
    id: str = ""


class TensorBoard:
    """Event files in the folder `tensorboard`."""

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = opening.folder / "tensorboard"
        self.id, self.place = "", f"TensorBoard: tensorboard --logdir {folder}"
        # TensorBoard hides what an earlier start logged at this step or later: the checkpoint's own step stays.
        self._writer = SummaryWriter(str(folder), purge_step=opening.start_step + 1)
        if opening.config and not opening.start_step:
            text = json.dumps(opening.config, indent=1, ensure_ascii=False)
            self._writer.add_text("config", f"```json\n{text}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write and flush, so that a run can be watched."""
        for name, value in values.items():
            self._writer.add_scalar(plain(name), value, step)
        self._writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Close the event file."""
        del failed
        self._writer.close()


class Mlflow:
    """A run of MLflow's experiment MLFLOW_EXPERIMENT_NAME ("rayvec" by default)."""

    def __init__(self, opening: Opening) -> None:
        # MLflow waits minutes for a server that is gone, and all ranks would wait with it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import logging

        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        local = f"sqlite:///{(opening.folder / 'mlflow.db').absolute()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        if uri == local:
            # Else MLflow makes a folder for files in whatever folder the process runs in.
            os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", str(opening.folder.absolute() / "mlruns"))
        self._client: Any = MlflowClient(tracking_uri=uri)
        self.id = self._continued(opening.id) or self._created(opening)
        self.place = f"MLflow at {uri}, run {self.id}"

    def _continued(self, id_: str) -> str:
        from mlflow.exceptions import MlflowException

        if not id_:
            return ""
        try:
            self._client.update_run(id_, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another server than last time
                return ""
            raise
        return id_

    def _created(self, opening: Opening) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"rayvec.version": __version__}
        id_: str = self._client.create_run(number, run_name=opening.run_name, tags=tags).info.run_id
        parameters = [Param(plain(key), text[:PARAMETER_CHARACTERS]) for key, text in flat(opening.config)]
        for start in range(0, len(parameters), PARAMETERS_PER_CALL):
            self._client.log_batch(id_, params=parameters[start : start + PARAMETERS_PER_CALL])
        return id_

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One call to the server."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self.id, metrics=[Metric(plain(k), float(v), now, step) for k, v in values.items()])

    def close(self, *, failed: bool = False) -> None:
        """Mark the run as done."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Wandb:
    """A run of the W&B project WANDB_PROJECT ("rayvec" by default)."""

    def __init__(self, opening: Opening) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of W&B's own errors, to its makers
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        told = os.environ.get("WANDB_MODE")
        # None is what `wandb online` and `wandb offline` have set.
        mode = told or (None if wandb.login(prompt=False, verify=False) else "offline")
        self.id = opening.id or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=opening.run_name,
            id=self.id,
            resume="allow",
            reinit="create_new",  # a process may train several stages, one after another
            mode=mode,
            dir=os.environ.get("WANDB_DIR") or str(opening.folder),
            config=dict(opening.config),
            settings=wandb.Settings(console="off"),
        )
        # A step that is logged again after a restart would be dropped if it were W&B's own.
        self._run.define_metric("*", step_metric="step")
        self.place = f"W&B at {self._run.url}" if self._run.url else f"W&B offline, wandb sync {self._sync_folder()}"

    def _sync_folder(self) -> Path:
        return Path(self._run.dir).parent

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the numbers to W&B's own process, which sends them."""
        self._run.log({"step": step, **{plain(name): value for name, value in values.items()}})

    def close(self, *, failed: bool = False) -> None:
        """Wait for what is yet to be sent."""
        self._run.finish(exit_code=int(failed))


class Kind(NamedTuple):
    """A row of the table: what must be installed, how, and what opens it."""

    modules: tuple[str, ...]
    install: str
    open: Callable[[Opening], Tracker]


#: mlflow itself asks for an older pyarrow than Ray Data's; mlflow-skinny is the same client without a server.
TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(("tensorboard",), "tensorboard", TensorBoard),
    "mlflow": Kind(("mlflow", "sqlalchemy", "alembic"), "mlflow-skinny sqlalchemy alembic", Mlflow),
    "wandb": Kind(("wandb",), "wandb", Wandb),
}


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UserError when a tracker is not installed: before workers start, not after."""
    for name in names:
        missing = [module for module in TRACKERS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(
                f"trackers: {name} is not installed (no module {missing[0]}); pip install {TRACKERS[name].install}, or "
                f"leave {name} out of trackers"
            )


class Trackers:
    """All trackers of a run. One that fails while training goes on is left out: metrics.jsonl holds every number."""

    def __init__(self, opened: Mapping[str, Tracker], say: Callable[[str], None]) -> None:
        self._open = dict(opened)
        self._say = say

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step to every tracker."""
        self._each(lambda tracker: tracker.log(step, values))

    def close(self, *, failed: bool = False) -> None:
        """The run is over; a second call does nothing."""
        self._each(lambda tracker: tracker.close(failed=failed))
        self._open.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # a full disk, a server that is gone, a refused key: of many libraries
                del self._open[name]
                self._say(_left_out(name, error))


def open_trackers(
    names: Sequence[TrackerName],
    folder: Path,
    *,
    run_name: str,
    config: Mapping[str, Any],
    start_step: int = 0,
    say: Callable[[str], None],
) -> Trackers:
    """Open trackers by name; ids in `folder` make them go on with the runs of an earlier start.

    say: tells a person one line. Raises UserError when one does not open at the beginning of a run; a run that goes
    on from a checkpoint goes on without it.
    """
    path = folder / IDS
    ids: dict[str, Any] = dict(storage.read_json(path)) if path.exists() else {}
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        opening = Opening(folder, run_name, config, start_step, ids.get(name, ""))
        try:
            opened[name] = TRACKERS[name].open(opening)
        except Exception as error:  # as above
            if not start_step:
                Trackers(opened, say).close(failed=True)
                raise UserError(
                    f"trackers: {name} does not open ({_line(error)}); see to it, or leave it out"
                ) from error
            say(_left_out(name, error))
            continue
        say(opened[name].place)
    new = ids | {name: tracker.id for name, tracker in opened.items() if tracker.id}
    if new != ids:
        storage.write_json(path, new)
    return Trackers(opened, say)


def _left_out(name: str, error: Exception) -> str:
    return f"trackers: {name} failed and is left out from here on ({_line(error)}); metrics.jsonl holds every number"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def plain(name: str) -> str:
    """A metric's name in letters that all trackers take.

    >>> plain("eval/py docs/ndcg@10")
    'eval/py_docs/ndcg_at_10'
    """
    return re.sub(r"[^\w./-]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested configuration as (dotted name, text), lists as JSON.

    >>> list(flat({"stage": {"kind": "mntp", "lora": {"targets": []}}, "steps": 4}))
    [('stage.kind', 'mntp'), ('stage.lora.targets', '[]'), ('steps', '4')]
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
