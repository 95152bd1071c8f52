"""The whole line as one job: MNTP, SimCSE, supervised, embed, index, measure, swap. Interrupted, it goes on there.

Each stage is a pipeline of its own, which resumes by itself; the line fills in where each finds what the one before
left, and keeps in `line.json` what each was asked, and about which files. What can be refused is refused before
anything is trained. Knows the order; knows nothing of how a stage is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial

from pydantic import Field

from pipelines._corpus import listed, listed_data, require_data
from pipelines._ray import ray_session
from pipelines._steps import Line, Step, say, told
from pipelines.embed import EmbedConfig, embed
from pipelines.index import IndexConfig, index
from pipelines.measure import MeasureConfig, load_task, measure
from pipelines.report import Report
from pipelines.train import TrainConfig, train
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError, VerificationError
from rayvec.serving.config import ServeConfig
from rayvec.training.stages import Pairs, PairSet, Texts

TITLES = {
    "mntp": "train MNTP: mask words, predict them from both sides",
    "simcse": "train SimCSE: two views of a text close, others apart",
    "supervised": "train supervised: queries close to their answers",
}
METRIC = "ndcg@10"


class LineConfig(Config):
    """The stages' own configurations; a stage that is null is left out."""

    #: A folder or URI for all that is made, but for the index where that is a URI: see index.output.
    output: str = ""
    #: What is embedded; and what mntp and simcse read, where they name no texts of their own.
    corpus: SourceConfig = SourceConfig()
    #: Pairs (see PairSet.path) for the supervised stage, read after its `prompts.instructions.query`, where it has one;
    #: its own sets when empty.
    pairs: str = ""
    #: The decoder that the first stage starts from, where it is not the one of its own configuration.
    start: str = ""
    mntp: TrainConfig | None = None
    simcse: TrainConfig | None = None
    supervised: TrainConfig | None = None
    #: With the encoder of the last stage that was trained; with its own encoder when none was.
    embed: EmbedConfig = EmbedConfig()
    #: `output`: the place of the index; `index` in the line's output when empty.
    index: IndexConfig = IndexConfig()
    #: On which judged data the encoder must prove itself before it is swapped in; null swaps unmeasured.
    measure: MeasureConfig | None = None
    #: The least nDCG@10 of the first of measure.systems.
    least: float | None = Field(None, ge=0, le=1)
    #: How far it may lie below that of the encoder which `live` serves, measured on the same data.
    tolerance: float = Field(0.01, ge=0, le=1)
    #: What the service is started with (`jobs.serve --config`): this file is replaced by the swap, and the one before
    #: kept beside it for the way back. `serve.yaml` in the output when empty.
    live: str = ""
    serve: ServeConfig = ServeConfig()


def llm2vec(config: LineConfig) -> Report:
    """Run the whole line, from a decoder and texts to an index that a service is pointed at; restartable at any point.

    Raises UserError, what the stages raise, or VerificationError when the encoder is not good enough to be swapped in.
    """
    if not config.output:
        raise UserError("output is required; give a folder with --set output=DIR")
    if not config.corpus.path and config.corpus.kind != "pydocs":
        raise UserError("corpus.path is required; give a file, folder or glob with --set corpus.path=…")
    if config.least is not None and config.measure is None:
        raise UserError("least needs something to measure on; give measure.data, or leave least out")
    started = time.monotonic()
    home = uris.absolute(config.output)
    line = Line(steps(config, home), record=uris.join(home, "line.json"))
    storage.write_bytes(uris.join(home, "config.yaml"), config.to_yaml().encode())
    if line.pending:
        _check(config, line, home)
        with ray_session():
            line.run()
    else:
        say(f"llm2vec: all {len(line.steps)} stages are done already in {config.output}")
    live = live_file(config, home)
    return {
        "stages": {name: record["seconds"] for name, record in line.records.items()},
        "seconds": round(time.monotonic() - started, 1),
        "output": config.output,
        "next": f"python -m jobs.serve --config {live}",
    }


def steps(config: LineConfig, home: str) -> list[Step]:
    """The line's stages, each with its inputs filled in."""
    stages = _stages(config)
    trained = train_steps(stages, home)
    encoder = uris.join(home, list(stages)[-1]) if stages else config.embed.encoder
    embedding = config.embed.replace(source=config.corpus, encoder=encoder)
    measured = [] if config.measure is None else [_measure_step(config, config.measure, home, encoder)]
    return [
        *trained,
        embed_step(embedding, home),
        index_step(config.index, home),
        *measured,
        _swap_step(config, home, encoder),
    ]


def _stages(config: LineConfig) -> dict[str, TrainConfig]:
    """What is trained, by name, the first from the line's start."""
    given = {name: getattr(config, name) for name in TITLES}
    stages = {name: _with_data(stage, config) for name, stage in given.items() if stage is not None}
    if stages and config.start:
        first = next(iter(stages))
        stages[first] = stages[first].replace(start=config.start)
    return stages


def _check(config: LineConfig, line: Line, home: str) -> None:
    """Raise UserError for what a step that is not done would refuse: hours after the first has begun, perhaps."""
    pending = {step.name for step in line.pending}
    if not uris.is_local(index_place(config.index, home)) and os.environ.get("RAY_ADDRESS"):
        from rayvec.indexing import tasks

        with ray_session():
            tasks.require_this_node()
    for name, stage in _stages(config).items():
        # One that has begun has prepared its examples, and needs no more.
        if name in pending and not storage.exists(uris.join(home, name, "training", "config.yaml")):
            require_data(stage.data)
    if "embed" in pending:
        require_data(Texts(source=config.corpus))
    if config.measure is not None and "measure" in pending:
        load_task(config.measure.replace(output=_scores(home)))
        _served_encoder(live_file(config, home))
        _require_instruction(config, config.measure)


def _require_instruction(config: LineConfig, measuring: MeasureConfig) -> None:
    """Raise UserError where the encoder is to be judged after an instruction that it will not have."""
    if measuring.systems[0] != "instruction" or measuring.instruction:
        return
    from rayvec.modeling.encoder import load_tokenizer_only

    stages = list(_stages(config).values())
    given = [stage.readings.get("prompts", {}).get("instructions", {}).get("query") for stage in stages]
    start = stages[0].start if stages else config.embed.encoder
    if not any(given) and not load_tokenizer_only(start).instructions.get("query"):
        raise UserError(
            "measure.systems begins with instruction, and the encoder will have none for queries; give one with --set "
            "measure.instruction=…, or put dense first"
        )


def train_steps(stages: Mapping[str, TrainConfig], home: str) -> list[Step]:
    """A step a stage, in the order given; each but the first starts from what the one before left."""
    found: list[Step] = []
    start = ""
    for name, stage in stages.items():
        output = uris.join(home, name)
        full = stage.replace(output=output, start=start or stage.start)
        asked = f"{full.digest()} {listed_data(full.data)}"
        found.append(Step(TITLES[name], uris.join(output, "report.json"), partial(_train, full), name, asked))
        start = output
    return found


def embed_step(config: EmbedConfig, home: str, title: str = "embed the corpus") -> Step:
    """Embed what `config` names into the home's `embeddings`."""
    full = config.replace(output=uris.join(home, "embeddings"))
    asked = f"{full.digest()} {listed(full.source)}"
    return Step(title, uris.join(full.output, "report.json"), partial(_embed, full), "embed", asked)


def index_step(config: IndexConfig, home: str) -> Step:
    """Index the home's embeddings, where the configuration says or in the home."""
    full = config.replace(embeddings=uris.join(home, "embeddings"), output=index_place(config, home))
    title = "index: FAISS and BM25, recall proved"
    return Step(title, uris.join(full.output, "report.json"), partial(_index, full), "index", full.digest())


def index_place(config: IndexConfig, home: str) -> str:
    """The folder of the index."""
    return uris.absolute(config.output) if config.output else uris.join(home, "index")


def live_file(config: LineConfig, home: str) -> str:
    """The file that says what is served."""
    return uris.absolute(config.live) if config.live else uris.join(home, "serve.yaml")


def _with_data(stage: TrainConfig, config: LineConfig) -> TrainConfig:
    """A stage that reads the line's corpus or pairs, where it names no data of its own."""
    data = stage.data
    if isinstance(data, Texts) and not data.source.path and data.source.kind != "pydocs":
        return stage.replace(data=data.replace(source=config.corpus))
    if isinstance(data, Pairs) and config.pairs:
        query = stage.prompts.instructions.get("query")  # of the recipe, or one's own: trained with what is stored
        pairs = PairSet(name="pairs", path=config.pairs, instructions=(query,) if query else ())
        return stage.replace(data=data.replace(sets=(pairs,)))
    return stage


def _train(config: TrainConfig) -> Report:
    return told(train(config), "steps", "first_loss", "last_loss", "resumed_from_step", "curves")


def _embed(config: EmbedConfig) -> Report:
    return told(embed(config), "embedded", "tokens", "truncated", "quarantined", "units", "units_resumed")


def _index(config: IndexConfig) -> Report:
    return told(index(config), "documents", "factory", "recall@10", "latency_ms", "version")


def _measure_step(config: LineConfig, measuring: MeasureConfig, home: str, encoder: str) -> Step:
    full = measuring.replace(encoder=encoder, output=_scores(home))
    run = partial(_measure, config, full, live_file(config, home))
    asked = f"{full.digest()} {config.least} {config.tolerance}"
    return Step("measure: is it good enough to be served?", uris.join(home, "measured.json"), run, "measure", asked)


def _scores(home: str) -> str:
    return uris.join(home, "scores.json")


def _measure(config: LineConfig, measuring: MeasureConfig, live: str) -> Report:
    """Measure the new encoder, and the one that is live, and refuse a worse one. Raises VerificationError."""
    system = measuring.systems[0]
    score = _score(measuring)
    found: Report = {"system": system, METRIC: score}
    if config.least is not None and score < config.least:
        raise VerificationError(
            f"{METRIC} is {score:.4f}, and least = {config.least:g}: not swapped in; train further, or lower least"
        )
    served = _served_encoder(live)
    if served and served != measuring.encoder:
        output = measuring.output.removesuffix(".json") + ".live.json"
        found["live"] = _score(measuring.replace(encoder=served, output=output))
        if score < found["live"] - config.tolerance:
            raise VerificationError(
                f"{METRIC} is {score:.4f}, and {found['live']:.4f} with the encoder that {live} serves: not "
                "swapped in; train further, or raise tolerance"
            )
    storage.write_json(measuring.output.removesuffix("scores.json") + "measured.json", found)
    return found


def _score(measuring: MeasureConfig) -> float:
    return float(measure(measuring)["systems"][measuring.systems[0]][METRIC]["mean"])


def _served_encoder(live: str) -> str:
    """The encoder of the service that the file describes; empty when there is none."""
    from rayvec.indexing import places

    if not storage.exists(live):
        return ""
    served = ServeConfig.from_yaml(live)
    if served.encoder:
        return served.encoder
    return str(places.read_manifest(served.index, served.index_version)["encoder"])


def _swap_step(config: LineConfig, home: str, encoder: str) -> Step:
    """Point the service at the new index and the encoder that made it."""
    full = config.serve.replace(index=index_place(config.index, home), encoder=encoder)
    live = live_file(config, home)
    return Step(f"swap: {live} serves it", live, partial(_swap, full, live), "swap", f"{live} {full.digest()}")


def _swap(config: ServeConfig, live: str) -> Report:
    """Replace the file at once, and keep the one before it beside it."""
    new = config.to_yaml().encode()
    if storage.exists(live) and storage.read_bytes(live) != new:
        before = live.removesuffix(".yaml") + ".previous.yaml"
        storage.write_bytes(before, storage.read_bytes(live))
    storage.write_bytes(live, new)
    return {"live": live}
