"""Embedding a corpus: plan the units, encode what is not done yet, publish.

A run that was interrupted goes on where it stopped; one that is done says so. Knows the order of things; how each is
done is told in rayvec.encoding.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines._losses import Losses, tell_of_payload
from pipelines._ray import largest_node_cpus, ray_session, tell_of_idle_gpus, wait_for_room
from pipelines.report import Report, recipe_family
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.modeling import references
from rayvec.schema import Long, VectorType

if TYPE_CHECKING:
    from rayvec.data.sources import Source
    from rayvec.encoding.shards import Plan
    from rayvec.encoding.sink import Record
    from rayvec.encoding.spent import Spent
    from rayvec.encoding.stages import Pool
    from rayvec.encoding.work import Work
    from rayvec.lease import Guard

LOG = logging.getLogger("rayvec.embed")

#: How Ray's resources name the model of a GPU.
ACCELERATOR = "accelerator_type:"
#: Of columns that began later, so many, the most frequent, are in the report.
_TOLD_LATER = 100
#: The histogram of lengths, beside report.json.
LENGTHS = "lengths.png"


class EmbedConfig(Config):
    """What to embed, with what, to where, and on how much of the cluster."""

    source: SourceConfig = SourceConfig()
    #: "hash", "tiny", a folder or URI of an encoder, or a Hugging Face id.
    encoder: str = "tiny"
    output: str = ""
    #: Put before each document, not pooled. Documents usually have none; queries do.
    instruction: str | None = None
    #: Whether a title is encoded before its text, on a line of its own.
    title: Literal["prepend", "ignore"] = "prepend"
    #: Documents longer than the encoder reads: "truncate"; "windows" and "late" (late chunking) give a row a window,
    #: "mean" the mean of the windows. See schema.Long.
    long: Long = "truncate"
    #: Tokens of the text in a window, without instruction and template; windows and late chunks, and what mean is of.
    window_tokens: PositiveInt = 100
    #: Of them, how many the window before has too.
    overlap_tokens: NonNegativeInt = 20
    #: Tokens that are read of a document, its instruction and template included; as many as the encoder is set to by
    #: default. Queries are read as the encoder is set: the index stays that encoder's.
    max_length: int | None = Field(default=None, ge=2)
    #: Keep only so many of the first dimensions (of an encoder trained for that: Matryoshka), at length 1 again.
    dimensions: PositiveInt | None = None
    #: Bring vectors to length 1 even if the encoder does not.
    normalize: bool = False
    #: "int8" comes with a scale for each vector; "binary" keeps one bit a dimension. See data.vector_types.
    dtype: VectorType = "float32"
    #: In which numbers the encoder computes. "auto": bfloat16 on a GPU, float32 on a CPU. "int8": on a CPU, about twice
    #: as fast as float32, at a cosine of 0.995 and more to its vectors.
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    keep_text: bool = True
    #: Records in a unit of work: what is committed, and lost by a kill, at once.
    unit_rows: PositiveInt = 4096
    #: Of records with the same id the first is kept and the others are recorded, or the run ends with an error.
    duplicates: Literal["first", "error"] = "first"
    #: The share of the records that may be quarantined. A run stops with status 6 as soon as it is certain to pass it;
    #: what is committed stays, and the same run with a higher limit goes on from there. It is also the share of the
    #: values of a payload column that may be null because they do not fit it.
    max_quarantine: float = Field(default=0.01, ge=0, le=1)
    #: Encoders at work at once; as many as the cluster has room for by default.
    actors: PositiveInt | None = None
    #: Begin with so many encoders, and take more, up to `actors`, as there is work and the cluster has or gains room.
    min_actors: PositiveInt | None = None
    #: Of each encoder; 0 for encoders on CPUs, though there be GPUs.
    num_gpus: float = Field(default=0, ge=0)
    #: The GPU model to run on where a cluster has several, as Ray names it: "H100", "A100", "L4"…
    accelerator_type: str | None = None
    #: Of each encoder on a CPU.
    threads: PositiveInt | None = None
    #: Seconds to wait for nodes that an autoscaler brings: for the encoders to begin with, one where none are asked.
    wait_s: float = Field(default=0.0, ge=0)
    #: Where the output is a bucket: seconds after which a run that gives no sign of life no longer holds it.
    lease_s: PositiveFloat = 60.0

    @model_validator(mode="after")
    def _the_pool_is_one(self) -> EmbedConfig:
        if self.min_actors is not None and self.actors is not None and self.min_actors > self.actors:
            raise ValueError(f"min_actors must be at most actors = {self.actors}")
        if self.accelerator_type is not None and not self.num_gpus:
            raise ValueError("accelerator_type is for encoders on GPUs; set num_gpus=1 too")
        if self.precision == "int8" and self.num_gpus:
            raise ValueError("precision=int8 is for encoders on CPUs; set num_gpus=0, or precision=auto")
        return self

    @model_validator(mode="after")
    def _windows_overlap_in_part(self) -> EmbedConfig:
        if self.overlap_tokens >= self.window_tokens:
            raise ValueError(f"overlap_tokens must be less than window_tokens = {self.window_tokens}")
        return self


def embed(config: EmbedConfig) -> Report:
    """Embed a corpus: each document exactly once, as one vector or one a window; restartable at any point.

    Raises UserError, MismatchError (another plan is there), ConcurrentWriterError, StorageError, or
    QuarantineExceededError: too much was refused, and the run was stopped, or is done and published.
    """
    from rayvec.encoding.shards import check_output
    from rayvec.encoding.sweep import sweep
    from rayvec.lease import sole_writer

    for key in ("encoder", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give a folder with --set {key}=DIR")
    output = uris.absolute(config.output)
    started = time.monotonic()
    check_output(output)
    with sole_writer(output, config.lease_s) as guard:
        sweep(output, config.lease_s)
        report = _run(config, output, started, guard)
        storage.write_json(uris.join(output, "report.json"), report)
    tell_of_payload(report)
    _losses(config).check(report)
    return report


def verify(output: str) -> Report:
    """Read everything of an embeddings folder again, and encode a few of its documents again.

    Raises VerificationError (status 7) when something is wrong, MismatchError when the encoder is another.
    """
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.encoding.reencode import reencode
    from rayvec.modeling.encoder import load_encoder, load_tokenizer_only

    dataset = EmbeddingsDataset.open(output)
    load = partial(load_encoder, dtype=dataset.manifest["settings"]["precision"])
    return {**dataset.verify(full=True), **reencode(dataset, load, load_tokenizer_only)}


def plan_and_work(config: EmbedConfig, output: str) -> tuple[Plan, Work]:
    """Open the source and the encoder's CPU side, and agree with what is there. Raises UserError, MismatchError."""
    from rayvec.data.sources import open_source
    from rayvec.encoding.shards import Plan, agree
    from rayvec.encoding.stages import tokenizer_of
    from rayvec.encoding.work import Work, cut
    from rayvec.modeling.encoder import load_encoder, load_tokenizer_only

    reference = references.canonical(config.encoder)
    source = open_source(config.source, cache=uris.join(output, "source"))
    if source.left:
        names = ", ".join(source.left[:8]) + (", …" if len(source.left) > 8 else "")
        LOG.info("left behind: %s; source.payload=all carries them, to be shown and filtered by", names)
    for name, types in source.mixed.items():
        LOG.warning(
            "payload column %r has values of %s, and is carried as text, which filters compare by its characters; "
            "write them as one type where they mean one",
            name,
            types,
        )
    fingerprint = load_tokenizer_only(reference).fingerprint
    _check_dimensions(config, fingerprint.dim)
    work = Work(
        source=source,
        output=output,
        reference=reference,
        fingerprint=fingerprint,
        load_encoder=partial(load_encoder, dtype=config.precision, device="cuda" if config.num_gpus else "cpu"),
        load_tokenizer=partial(load_tokenizer_only, verify=False),  # the plan has verified, and the encoders will
        instruction=config.instruction,
        title=config.title,
        dtype=config.dtype,
        keep_text=config.keep_text,
        long=config.long,
        window_tokens=config.window_tokens,
        overlap_tokens=config.overlap_tokens,
        max_length=config.max_length,
        dimensions=config.dimensions,
        normalize=config.normalize,
    )
    cut(work, tokenizer_of(work), ["a"])  # what leaves a text no room is told here, before anything is written
    units = source.units(config.unit_rows)
    plan = Plan(tuple(source.inputs()), tuple(units), work.fingerprint, _settings(config, source))
    return agree(output, plan), work


def _run(config: EmbedConfig, output: str, started: float, guard: Guard) -> Report:
    from rayvec.encoding.publish import manifest, publish, settle_duplicates

    plan, work = plan_and_work(config, output)
    storage.write_bytes(uris.join(output, "config.yaml"), config.to_yaml().encode())
    records, resumed, spent = _work_through(config, work, plan, guard)
    guard.check()
    settled = settle_duplicates(work.sink, plan.units, records)
    _check_duplicates(config, settled)
    guard.check()
    version, sha256 = publish(work.sink, manifest(plan, settled, work.sink, config.encoder))
    _draw_lengths(output, settled)
    return {
        **_report(config, plan, settled, resumed, version, sha256),
        "seconds": round(time.monotonic() - started, 2),
        "busy": spent.shares,
        "padding": spent.padding,
        **_where(config, output),
    }


def _work_through(config: EmbedConfig, work: Work, plan: Plan, guard: Guard) -> tuple[list[Record], int, Spent]:
    """All records in the order of the units, how many units were done before, and what the others took."""
    from rayvec.encoding.limit import QuarantineLimit
    from rayvec.encoding.metrics import RunMetrics
    from rayvec.encoding.progress import Progress
    from rayvec.encoding.spent import Spent
    from rayvec.encoding.stages import run_units

    done = work.sink.committed([unit.name for unit in plan.units])
    pending = [unit for unit in plan.units if unit.name not in done]
    resumed, total = len(done), Spent()
    limit, losses = QuarantineLimit.of(config.max_quarantine, plan.units, done), _losses(config)
    if pending:
        losses.check_running(limit)
        progress = Progress(sum(unit.rows_estimate for unit in pending))
        with (
            ray_session(),
            contextlib.closing(progress),
            contextlib.closing(run_units(work, pending, _pool(config))) as records,
        ):
            metrics = RunMetrics(work.output, len(plan.units), resumed)
            for record, spent in records:
                guard.check()
                done[record.unit] = record
                total.add(spent)
                progress.add(record, spent)
                metrics.add(record, spent)
                limit.add(record)
                losses.check_running(limit)
    return [done[unit.name] for unit in plan.units], resumed, total


def _losses(config: EmbedConfig) -> Losses:
    return Losses(config.source, config.max_quarantine, config.output)


def _draw_lengths(output: str, records: list[Record]) -> None:
    from rayvec.encoding.lengths import histogram
    from rayvec.encoding.publish import totals

    sums = totals(records)
    storage.write_bytes(uris.join(output, LENGTHS), histogram(sums["lengths"], sums["lengths_truncated"]))


def _settings(config: EmbedConfig, source: Source) -> dict[str, Any]:
    """What moves a byte of the output, beside the inputs and the encoder; a resumed run must have the same."""
    names = {"instruction", "title", "long", "max_length", "dimensions", "normalize", "dtype", "precision"}
    names |= {"keep_text", "unit_rows"}
    if config.long != "truncate":
        names |= {"window_tokens", "overlap_tokens"}
    opened = source.config.model_dump(mode="json", exclude={"path"}) | {"names_by_place": source.names_by_place}
    return {"source": opened, **config.model_dump(mode="json", include=names)}


def _check_dimensions(config: EmbedConfig, dim: int) -> None:
    if config.dimensions is not None and config.dimensions > dim:
        raise UserError(f"dimensions = {config.dimensions}: the encoder's vectors have {dim}; ask for fewer")
    kept = config.dimensions or dim
    if config.dtype == "binary" and kept % 8:
        raise UserError(
            f"dtype = binary packs eight dimensions into a byte, and there are {kept}; "
            + (f"set dimensions to {max(8, kept // 8 * 8)}" if dim >= 8 else "choose another dtype")
        )


def _pool(config: EmbedConfig) -> Pool:
    import ray

    from rayvec.encoding.stages import Pool

    if config.wait_s:
        bundle = {"CPU": float(config.threads or 1), "GPU": config.num_gpus}
        wait_for_room([bundle] * (config.min_actors or config.actors or 1), config.wait_s)
    there: dict[str, float] = ray.cluster_resources()
    tell_of_idle_gpus(config.encoder, config.num_gpus, "num_gpus=1")
    pool = Pool.fit(
        there.get("CPU", 0.0),
        there.get("GPU", 0.0),
        node_cpus=largest_node_cpus(),
        actors=config.actors,
        min_actors=config.min_actors,
        num_gpus=config.num_gpus,
        threads=config.threads,
    )
    models = sorted(name.removeprefix(ACCELERATOR) for name in there if name.startswith(ACCELERATOR))
    if config.accelerator_type is not None and config.accelerator_type not in models:
        has = ", ".join(models) or "none that Ray knows"
        raise UserError(f"accelerator_type = {config.accelerator_type} is not in the cluster, which has: {has}")
    return replace(pool, accelerator_type=config.accelerator_type)


def _check_duplicates(config: EmbedConfig, records: list[Record]) -> None:
    repeated = [record for record in records if record.duplicates]
    if config.duplicates == "error" and repeated:
        raise UserError(
            f"{sum(record.duplicates for record in repeated)} records have the id of an earlier one; see "
            f"quarantine/{repeated[0].unit}.jsonl in the output; keep the first of each with --set duplicates=first"
        )


def _report(
    config: EmbedConfig,
    plan: Plan,
    records: list[Record],
    resumed: int,
    version: int,
    sha256: str,
) -> Report:
    from rayvec.encoding.publish import totals

    sums = totals(records)
    nulled = sums["nulled"]
    later = dict(Counter(sums["later"]).most_common(_TOLD_LATER))
    return {
        "inputs": sums["records"],
        "embedded": sums["documents"],
        **({"rows": sums["rows"]} if config.long in ("windows", "late") else {}),
        "quarantined": sums["reasons"],
        **({"nulled": nulled, "values": {name: sums["given"][name] for name in nulled}} if nulled else {}),
        **({"began_later": later} if later else {}),
        "duplicates": sums["duplicates"],
        "truncated": sums["truncated"],
        "tokens": sums["tokens"],
        "bytes": sums["bytes"],
        "files": len(plan.inputs),
        "units": len(records),
        "units_resumed": resumed,
        "encoder": config.encoder,
        "fingerprint": plan.fingerprint.short,
        "version": version,
        "manifest_sha256": sha256,
    }


def _where(config: EmbedConfig, output: str) -> Report:
    """Where the result lies, and what comes next."""
    recipe = f"{recipe_family(config.encoder)}.index"
    return {
        "lengths": uris.join(output, LENGTHS),
        "output": output,
        "next": f"python -m jobs.index --recipe {recipe} --set embeddings={config.output} --set output=DIR",
    }
