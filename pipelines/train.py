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
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, PositiveInt, model_validator

from pipelines._corpus import listed_data
from pipelines._ray import ray_session, wait_for_room
from pipelines.evaluate import EVALUATOR, Evaluation
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.data.source_config import SourceConfig
from rayvec.errors import MismatchError, RayvecError, UserError
from rayvec.training.stages import STAGES, MaskedSet, Texts, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.job import Job
    from rayvec.training.run_folder import RunFolder
    from rayvec.training.worker import Outcome

LOG = logging.getLogger("rayvec.training")
ZERO_SETTINGS = Path(__file__).resolve().parent.parent / "infra" / "deepspeed"


class TrainConfig(TrainingConfig):
    """A stage, where its result goes, and on how much of the cluster it runs."""

    output: str = ""
    #: The model that `start` is made of, where `start` is yet to be made: `--dry-run` counts its parameters.
    base: str = ""
    #: Processes that train together under Ray; 0 trains in this process, without Ray and DeepSpeed.
    workers: int = Field(2, ge=0)
    #: With fewer machines than asked for, and when some are lost, go on with so many workers at least; by default the
    #: number stays. Not under ZeRO 3. Another number adds in another order, so the last bits of the weights differ.
    min_workers: PositiveInt | None = None
    cpus_per_worker: PositiveInt = 1
    #: "auto": GPUs where the cluster has one for each worker.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: Seconds to wait for nodes that an autoscaler brings: for the workers' GPUs (unless device=cpu) and CPUs; and for
    #: room on nodes that others' work fills, where an hour is always waited.
    wait_s: float = Field(0.0, ge=0)
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    #: DeepSpeed's settings: zero0 to zero3, zero2_offload or zero3_offload of infra/deepspeed, or a JSON file's path.
    zero: str = "zero1"
    #: Starts again after a lost worker, from the last checkpoint.
    max_failures: int = Field(2, ge=0)
    #: A checkpoint (or a folder of them) of a run with the same settings to go on from, when `output` has none; it is
    #: verified first.
    resume_from: str = ""

    @model_validator(mode="after")
    def _shrinks_within_bounds(self) -> TrainConfig:
        if self.min_workers is not None and not self.min_workers <= self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than workers = {self.workers}; lower it")
        if self.min_workers is not None and self.zero.startswith("zero3"):
            raise ValueError("min_workers needs zero0 to zero2: ZeRO 3 goes on with as many workers as it began with")
        return self


def train(config: TrainConfig) -> Report:
    """Train one stage; restartable at any point, to the bit.

    Raises UserError, MismatchError (the output holds another run, or one on files that have changed since),
    QuarantineExceededError (too many of the records are no documents), ConcurrentWriterError, or DivergedError.
    """
    from rayvec.lease import sole_writer
    from rayvec.training.run_folder import RunFolder
    from rayvec.training.trackers import require_trackers

    if not config.output:
        raise UserError("output is required; give a folder with --set output=DIR")
    if not config.start and config.stage.kind != "pretrain":
        raise UserError("start is required; give the output of the stage before with --set start=DIR")
    require_trackers(config.trackers)
    config = _wherever_it_runs(config)
    settings = zero_settings(config.zero)
    there = RunFolder(config.output)
    # At a URI two machines are kept apart by a lease, and two drivers of one machine by the lock on its copy.
    with contextlib.ExitStack() as stack:
        for place in dict.fromkeys((str(there.local), there.uri)):
            stack.enter_context(sole_writer(place))
        inputs, data = _start_digest(config), listed_data(config.data)
        if (report := _done(config, there, inputs, data)) is not None:
            return report
        return _train(config, there.uri, inputs, data, settings)


def _wherever_it_runs(config: TrainConfig) -> TrainConfig:
    """The same with absolute paths: workers have folders of their own to run in, and the next start may too."""
    from rayvec.modeling import references

    data = config.data
    if isinstance(data, Texts):
        source, also = _absolute(data.source), tuple(_absolute(one) for one in data.also)
        data = data.replace(source=source, also=also)
    else:
        sets = [one if one.path == "pydocs" else one.replace(path=uris.absolute(one.path)) for one in data.sets]
        data = data.replace(sets=tuple(sets))
    evaluation = [
        one.replace(source=_absolute(one.source))
        if isinstance(one, MaskedSet)
        else (one.replace(data=uris.absolute(one.data)) if storage.exists(one.data) else one)
        for one in config.evaluation
    ]
    return config.replace(
        output=uris.absolute(config.output),
        start=config.start and references.canonical(config.start),
        data=data,
        evaluation=tuple(evaluation),
        resume_from=config.resume_from and uris.absolute(config.resume_from),
    )


def _absolute(source: SourceConfig) -> SourceConfig:
    if not source.path:
        return source
    several = not isinstance(source.path, str)
    return source.replace(path=tuple(map(uris.absolute, source.path)) if several else uris.absolute(source.where))


def _start_digest(config: TrainConfig) -> str:
    """What the run starts from, as a hash of weights, adapters and tokenizer; nothing before pretraining."""
    from rayvec.modeling.folder import open_encoder

    return open_encoder(config.start).fingerprint.digest() if config.start else ""


def zero_settings(name: str) -> dict[str, Any]:
    """DeepSpeed's settings by name or path. Raises UserError."""
    path = ZERO_SETTINGS / f"{name}.json" if (ZERO_SETTINGS / f"{name}.json").exists() else Path(name)
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in ZERO_SETTINGS.glob("*.json")))
        raise UserError(f"zero = {name!r}: neither one of {known} nor a JSON file ({error})") from None
    return settings


def _done(config: TrainConfig, there: RunFolder, start: str, data: str) -> Report | None:
    """The report of a finished run of the same configuration. Raises MismatchError when it is another one's, unless
    that has made no step that would be lost: settings that memory was too small for do not stand in the way of others.
    """
    from rayvec.training.job import HARMLESS
    from rayvec.training.run_folder import RunFolder

    saved = uris.join(there.uri, "training", "config.yaml")
    if not storage.exists(saved):
        return None
    placement = {"output", "cpus_per_worker", "max_failures", "min_workers", "resume_from", "base", "wait_s"}
    ignored = HARMLESS | placement
    old, new = (
        {name: value for name, value in _flat(values).items() if name.partition(".")[0] not in ignored}
        for values in (yaml.safe_load(storage.read_bytes(saved)), config.model_dump(mode="json"))
    )
    differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    known = storage.read_json(uris.join(there.uri, "training", "run.json"))
    report = uris.join(there.uri, "report.json")
    # What is gone since cannot be compared, and is not needed by a run that has prepared its examples.
    changed = data not in ("", known["data"])
    differs = differing or known["start"] != start or changed
    run = RunFolder(there.uri, known["run"] if there.remote else "")
    if differs and not storage.exists(report) and run.newest_checkpoint() is None:
        storage.delete(saved)
        return None
    if differing:
        told = "; ".join(
            f"{name}: {json.dumps(old.get(name))} there, {json.dumps(new.get(name))} asked for" for name in differing
        )
        raise MismatchError(f"{there.uri} holds another run ({told}); choose another output, or remove the folder")
    if known["start"] != start:
        raise MismatchError(
            f"{there.uri} holds a run from other weights than {config.start} has now; choose another output, or remove "
            "the folder"
        )
    if not storage.exists(report):
        if changed:
            LOG.warning("the data has changed; the run in %s goes on with the examples that it has prepared", there.uri)
        return None
    if changed:
        raise MismatchError(
            f"{there.uri} holds a run on data that has changed since; choose another output, or remove the folder"
        )
    return {**storage.read_json(report), "note": "was done already"}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested configuration by dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(one, f"{name}.{key}" if name else key) for key, one in value.items()]
    return {key: one for part in parts for key, one in part.items()}


def _train(config: TrainConfig, output: str, start: str, data: str, settings: dict[str, Any]) -> Report:
    from rayvec.training.curves import draw, read_metrics
    from rayvec.training.job import Job
    from rayvec.training.run_folder import RunFolder

    started = time.monotonic()
    saved, known = (uris.join(output, "training", name) for name in ("config.yaml", "run.json"))
    fresh = not storage.exists(saved)
    begun = {"run": uuid.uuid4().hex, "start": start, "data": data} if fresh else storage.read_json(known)
    run = begun["run"]
    folder = RunFolder(output, run if RunFolder(output).remote else "")
    local = folder.local / "training"
    if fresh:
        shutil.rmtree(local / "data", ignore_errors=True)  # of a run that broke off before its settings were kept
    elif storage.exists(uris.join(output, "training", "data", "store.json")):
        folder.pull("training/data", last="store.json")
    prepare(config, local)
    folder.push("training/data", last="store.json")
    # Not before: settings with which there are no examples must not stand in the way of better ones.
    storage.write_json(known, begun)
    storage.write_bytes(saved, config.to_yaml().encode())
    prepared = time.monotonic() - started
    job = Job(
        TrainingConfig.parse({name: getattr(config, name) for name in TrainingConfig.model_fields}),
        output,
        config.engine if config.workers else "plain",
        settings,
        threads=config.cpus_per_worker,
        evaluator=EVALUATOR,
        resume_from=config.resume_from,
        run=folder.run,
        inputs=storage.sha256_bytes(f"{start}+{_data_digest(local / 'data')}".encode()),
    )
    outcome = _run_alone(job, config.device) if config.workers == 0 else _run_on_ray(job, config)
    metrics = read_metrics(folder.pull_file("training/metrics.jsonl"))
    draw(metrics, local / "curves.png", f"{config.stage.kind} from {uris.name_of(config.start)}")
    folder.push("training/curves.png")
    if "error" in outcome:
        if outcome["error"] == "UserError" and folder.newest_checkpoint() is None:
            storage.delete(saved)  # as above: no step was made with these settings
        raise _error(outcome)
    report = _report(config, folder, outcome, metrics) | {
        "prepare_seconds": round(prepared, 1),
        "seconds": round(time.monotonic() - started, 1),
        **_left_out(local / "data"),
        **({"warning": warning} if (warning := collapse(config, metrics)) else {}),
    }
    storage.write_json(uris.join(output, "report.json"), report)
    folder.clear("training/data")
    return report


def _left_out(data: Path) -> Report:
    """What was not trained on, as preparing told it."""
    told = storage.read_json(data / "store.json").get("left_out")
    return {"left_out": told} if told else {}


def _data_digest(folder: Path) -> str:
    """The examples, as a hash of all their files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return storage.sha256_bytes("+".join(f"{path.name}:{storage.sha256_file(path)}" for path in files).encode())


def prepare(config: TrainingConfig, folder: Path) -> None:
    """Tokenize the examples into folder/data, unless they are there. Raises UserError where they make no batch."""
    from importlib import import_module

    from rayvec.training.examples import require_batches

    if config.evaluation:
        Evaluation(config.evaluation, str(folder / "cache"))  # what is not there, or not readable, is found out now
    if (folder / "data" / "store.json").exists():
        return
    shutil.rmtree(folder / "data", ignore_errors=True)
    module, _, name = STAGES[config.stage.kind].prepare.partition(":")
    getattr(import_module(module), name)(config, folder / "data", str(folder / "cache"))
    require_batches(config, folder / "data")


def _run_alone(job: Job, wanted: str) -> Outcome:
    import dataclasses

    import torch

    from rayvec.training.job import LocalLink
    from rayvec.training.memory import lacks_memory, memory_advice
    from rayvec.training.worker import work

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, and torch finds no GPU here; set device=auto or cpu")
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    job = dataclasses.replace(job, device=device, threads=0)
    try:
        return work(job, LocalLink(job.folder, job.config.keep_checkpoints))
    except (RuntimeError, MemoryError) as error:  # torch's own OutOfMemoryError is a RuntimeError
        if not lacks_memory(f"{type(error).__name__}: {error}"):
            raise
        raise RayvecError(f"{memory_advice(job.config)} ({str(error).splitlines()[0]})") from error


def _run_on_ray(job: Job, config: TrainConfig) -> Outcome:
    import dataclasses

    with ray_session():
        import ray

        from rayvec.training.trainer import Workers, run

        logging.getLogger("ray.train").setLevel(logging.WARNING)
        if config.wait_s:
            bundle = {"CPU": float(config.cpus_per_worker), "GPU": float(config.device != "cpu")}
            wait_for_room([bundle] * config.workers, config.wait_s)
        gpus = ray.cluster_resources().get("GPU", 0)
        use_gpu = config.device == "cuda" or (
            config.device == "auto" and gpus >= (config.min_workers or config.workers)
        )
        group = Workers(
            count=config.workers,
            least=config.min_workers,
            cpus=config.cpus_per_worker,
            gpu=use_gpu,
            max_failures=config.max_failures,
            wait_s=config.wait_s,
        )
        return run(dataclasses.replace(job, device="cuda" if use_gpu else "cpu"), group)


def collapse(config: TrainingConfig, metrics: list[dict[str, float]]) -> str | None:
    """What to say when SimCSE's loss is next to nothing from the start: its views were too alike to teach anything."""
    losses = [line["loss"] for line in metrics if "loss" in line]
    if config.stage.kind != "simcse" or not losses or losses[0] > 0.005 * math.log(config.batch_size):
        return None
    return f"the loss began at {losses[0]:.2g}: both views are nearly the same; raise stage.attention_dropout"


def _error(outcome: Outcome) -> RayvecError:
    """The error that the workers agreed on, as the class that it was."""
    from rayvec import errors
    from rayvec.training.loop import DivergedError

    kinds: dict[str, type[RayvecError]] = {"DivergedError": DivergedError, **vars(errors)}
    return kinds.get(outcome["error"], RayvecError)(outcome["message"])


def _report(config: TrainConfig, folder: RunFolder, outcome: Outcome, metrics: list[dict[str, float]]) -> Report:
    from rayvec.training.curves import first_values, last_values

    shown = ("loss", "masked_accuracy", "accuracy", "alignment", "uniformity")
    first, last = first_values(metrics), last_values(metrics)
    evaluated = {name: [round(first[name], 4), round(last[name], 4)] for name in first if name.startswith("eval/")}
    return {
        "stage": config.stage.kind,
        "start": config.start,
        "steps": config.steps,
        **{f"first_{name}": first[name] for name in shown if name in first},
        **{f"last_{name}": last[name] for name in shown if name in last},
        **({"evaluation": evaluated} if evaluated else {}),
        "workers": config.workers,
        "engine": config.engine if config.workers else "plain",
        **outcome,
        "output": config.output if folder.remote else str(folder.local),
        "curves": uris.join(folder.uri, "training", "curves.png"),
    }
