"""Training one stage: prepare the examples, run the workers, draw the curves. Its output is the next stage's start.

A run that was interrupted goes on from its last checkpoint; one that is done says so. Knows the order of things; how
each is done is told in rayvec.training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from pipelines._ray import ray_session
from pipelines.report import Report
from rayvec import storage
from rayvec.config import read_yaml
from rayvec.errors import MismatchError, RayvecError, UserError
from rayvec.training.stages import STAGES, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.worker import Job, Outcome

LOG = logging.getLogger("rayvec.training")
ZERO_SETTINGS = Path(__file__).resolve().parent.parent / "infra" / "deepspeed"
#: Settings that may change when a run is gone on with: they move no weight.
HARMLESS = frozenset(
    {
        "output",
        "cpus_per_worker",
        "max_failures",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "compare_ranks_every",
    }
)


class TrainConfig(TrainingConfig):
    """A stage, where its result goes, and on how much of the cluster it runs."""

    output: str = ""
    #: The model that `start` is made of, where `start` is yet to be made: `--dry-run` counts its parameters.
    base: str = ""
    #: Processes that train together under Ray; 0 trains in this process, without Ray and DeepSpeed.
    workers: int = Field(2, ge=0)
    cpus_per_worker: PositiveInt = 1
    #: "auto": GPUs where the cluster has one for each worker.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    #: DeepSpeed's settings: zero0 to zero3 of infra/deepspeed, or the path of a JSON file.
    zero: str = "zero1"
    #: Starts again after a lost worker, from the last checkpoint.
    max_failures: int = Field(2, ge=0)


def train(config: TrainConfig) -> Report:
    """Train one stage; restartable at any point, to the bit.

    Raises UserError, MismatchError (the output holds another run), ConcurrentWriterError, or DivergedError.
    """
    from rayvec.encoding.lease import sole_writer

    if not config.output:
        raise UserError("output is required; give a folder with --set output=DIR")
    if not storage.is_local(config.output):
        raise UserError(f"output {config.output}: training writes to a folder that all workers see; copy it afterwards")
    output = storage.local_path(config.output).absolute()
    if not config.start and config.stage.kind != "pretrain":
        raise UserError("start is required; give the output of the stage before with --set start=DIR")
    settings = zero_settings(config.zero)
    with sole_writer(str(output)):
        if (report := _done(config, output)) is not None:
            return report
        return _train(config, output, settings)


def zero_settings(name: str) -> dict[str, Any]:
    """DeepSpeed's settings by name or path. Raises UserError."""
    path = ZERO_SETTINGS / f"{name}.json" if (ZERO_SETTINGS / f"{name}.json").exists() else Path(name)
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in ZERO_SETTINGS.glob("*.json")))
        raise UserError(f"zero = {name!r}: neither one of {known} nor a JSON file ({error})") from None
    return settings


def _done(config: TrainConfig, output: Path) -> Report | None:
    """The report of a finished run of the same configuration. Raises MismatchError when it is another one's."""
    saved = output / "training" / "config.yaml"
    if not saved.exists():
        return None
    old, new = read_yaml(saved), config.model_dump(mode="json")
    differing = [name for name in new if name not in HARMLESS and old.get(name) != new[name]]
    if differing:
        shown = "; ".join(f"{name}: {_short(old.get(name))} there, {_short(new[name])} asked for" for name in differing)
        raise MismatchError(f"{output} holds another run ({shown}); choose another output, or remove the folder")
    if not (output / "report.json").exists():
        return None
    return {**storage.read_json(output / "report.json"), "note": "was done already"}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _train(config: TrainConfig, output: Path, settings: dict[str, Any]) -> Report:
    from rayvec.training.curves import draw, read_metrics
    from rayvec.training.worker import Job

    started = time.monotonic()
    folder = output / "training"
    storage.write_bytes(folder / "config.yaml", config.to_yaml().encode())
    prepare(config, folder)
    prepared = time.monotonic() - started
    core = TrainingConfig.parse({name: getattr(config, name) for name in TrainingConfig.model_fields})
    job = Job(core, output, config.engine if config.workers else "plain", settings, threads=config.cpus_per_worker)
    outcome = _run_alone(job) if config.workers == 0 else _run_on_ray(job, config)
    metrics = read_metrics(folder / "metrics.jsonl")
    draw(metrics, folder / "curves.png", f"{config.stage.kind} from {Path(config.start).name}")
    if "error" in outcome:
        raise _error(outcome)
    report = _report(config, output, outcome, metrics) | {
        "prepare_seconds": round(prepared, 1),
        "seconds": round(time.monotonic() - started, 1),
        **({"warning": warning} if (warning := collapse(config, metrics)) else {}),
    }
    storage.write_json(output / "report.json", report)
    shutil.rmtree(folder / "data", ignore_errors=True)
    return report


def prepare(config: TrainingConfig, folder: Path) -> None:
    """Tokenize the examples into folder/data, unless they are there."""
    from importlib import import_module

    if (folder / "data" / "store.json").exists():
        return
    shutil.rmtree(folder / "data", ignore_errors=True)
    module, _, name = STAGES[config.stage.kind].prepare.partition(":")
    getattr(import_module(module), name)(config, folder / "data", str(folder / "cache"))


def _run_alone(job: Job) -> Outcome:
    import dataclasses

    import torch

    from rayvec.training.worker import LocalLink, work

    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = dataclasses.replace(job, device=device, threads=0)
    return work(job, LocalLink(job.output / "training" / "checkpoints", job.config.keep_checkpoints))


def _run_on_ray(job: Job, config: TrainConfig) -> Outcome:
    import dataclasses

    with ray_session():
        import ray

        from rayvec.training.trainer import Workers, run

        logging.getLogger("ray.train").setLevel(logging.WARNING)
        gpus = ray.cluster_resources().get("GPU", 0)
        use_gpu = config.device == "cuda" or (config.device == "auto" and gpus >= config.workers)
        group = Workers(
            count=config.workers, cpus=config.cpus_per_worker, gpu=use_gpu, max_failures=config.max_failures
        )
        with _shown(job.output / "training" / "progress.log"):
            return run(dataclasses.replace(job, device="cuda" if use_gpu else "cpu"), group)


@contextlib.contextmanager
def _shown(path: Path) -> Iterator[None]:
    """Show the lines that are added to a file: Ray's own forwarding would bring its workers' noise along."""
    done = threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        place, last = start, False
        while not last:
            last = done.wait(0.5)
            if path.exists():
                with path.open(encoding="utf-8") as file:
                    file.seek(place)
                    if text := file.read().rstrip("\n"):
                        LOG.info(text)
                    place = file.tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def collapse(config: TrainingConfig, metrics: list[dict[str, float]]) -> str | None:
    """What to say when SimCSE's loss is next to nothing from the start: its views were too alike to teach anything."""
    if config.stage.kind != "simcse" or not metrics or metrics[0]["loss"] > 0.005 * math.log(config.batch_size):
        return None
    return f"the loss began at {metrics[0]['loss']:.2g}: both views are nearly the same; raise stage.attention_dropout"


def _error(outcome: Outcome) -> RayvecError:
    """The error that the workers agreed on, as the class that it was."""
    from rayvec import errors
    from rayvec.training.loop import DivergedError

    kinds: dict[str, type[RayvecError]] = {"DivergedError": DivergedError, **vars(errors)}
    return kinds.get(outcome["error"], RayvecError)(outcome["message"])


def _report(config: TrainConfig, output: Path, outcome: Outcome, metrics: list[dict[str, float]]) -> Report:
    shown = ("loss", "masked_accuracy", "accuracy", "alignment", "uniformity")
    first, last = (metrics[0], metrics[-1]) if metrics else ({}, {})
    return {
        "stage": config.stage.kind,
        "start": config.start,
        "steps": config.steps,
        **{f"first_{name}": first[name] for name in shown if name in first},
        **{f"last_{name}": last[name] for name in shown if name in last},
        "workers": config.workers,
        "engine": config.engine if config.workers else "plain",
        **outcome,
        "output": str(output),
        "curves": str(output / "training" / "curves.png"),
    }
