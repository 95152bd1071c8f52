"""The embedded model's recipes: the whole line on two cores, on the documentation of this Python environment."""

from __future__ import annotations

from pipelines.advise import AdviseConfig
from pipelines.compact import CompactConfig
from pipelines.demo import DemoConfig
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import LineConfig
from pipelines.measure import MeasureConfig
from pipelines.mine import MineConfig
from pipelines.train import TrainConfig
from pipelines.update import UpdateConfig
from pipelines.words import WordsConfig
from rayvec.data.source_config import SourceConfig
from rayvec.modeling.adapters import LoraSettings
from rayvec.serving.config import ServeConfig
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, Simcse, Supervised, Texts

PYDOCS = Texts(source=SourceConfig(kind="pydocs"), min_characters=60)
LORA = LoraSettings(rank=16, alpha=32, dropout=0.05)
WIDE_LORA = LoraSettings(rank=64, alpha=128, dropout=0.05)


def pretrain() -> TrainConfig:
    """A Llama of 7 M parameters from nothing (hours on two cores); data.also adds sources to pydocs."""
    return TrainConfig(
        stage=Pretrain(),
        data=PYDOCS,
        start="",
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=60, beta2=0.98, weight_decay=0.1),
        steps=1200,
        batch_size=8,
        max_length=512,
        checkpoint_every=100,
    )


def mntp() -> TrainConfig:
    """Masked next token prediction from the embedded decoder: two minutes."""
    return TrainConfig(
        stage=Mntp(lora=WIDE_LORA),
        data=PYDOCS,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="linear", warmup_steps=5),
        steps=240,
        batch_size=8,
        max_length=128,
        log_every=20,
        checkpoint_every=60,
    )


def simcse() -> TrainConfig:
    """SimCSE; set start to the output of mntp."""
    return TrainConfig(
        stage=Simcse(lora=LORA, scale=20.0, attention_dropout=0.3),
        data=PYDOCS.replace(title="ignore"),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=5),
        steps=40,
        batch_size=64,
        max_length=32,
        log_every=5,
        checkpoint_every=20,
    )


def supervised() -> TrainConfig:
    """First paragraphs of docstrings ask, their rests answer; set start to the output of mntp or simcse."""
    return TrainConfig(
        stage=Supervised(lora=WIDE_LORA, scale=20.0, hard_negatives=0),
        data=Pairs(sets=(PairSet(name="pydocs", path="pydocs"),)),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=10),
        steps=60,
        batch_size=64,
        max_length=64,
        log_every=5,
        checkpoint_every=30,
    )


def embed() -> EmbedConfig:
    """Embed with the embedded encoder: set source.path (or source.kind=pydocs) and output."""
    return EmbedConfig(encoder="tiny", unit_rows=1024)


def index() -> IndexConfig:
    """Index what embed made: set embeddings and output."""
    return IndexConfig()


def update() -> UpdateConfig:
    """Put new embeddings into an index and take ids out of it: set index, and embeddings or delete."""
    return UpdateConfig()


def compact() -> CompactConfig:
    """Build an updated index anew as one segment: set index."""
    return CompactConfig()


def advise() -> AdviseConfig:
    """Which dimensions and index suit what embed made: set embeddings and output."""
    return AdviseConfig()


def mine() -> MineConfig:
    """Mine hard negatives for pairs out of an index: set index, pairs and output."""
    return MineConfig()


def measure() -> MeasureConfig:
    """Measure the embedded encoder, BM25 and the hybrid of both: set data and output."""
    return MeasureConfig(encoder="tiny", data="pydocs")


def words() -> WordsConfig:
    """Probe words for chunks, entities or parts of speech: set train, test (tagged sentences) and output."""
    # Its 60 steps of MNTP have not moved words to the place before them: there the probe reads far less.
    return WordsConfig(encoder="tiny", position="word")


def serve() -> ServeConfig:
    """Serve an index: set index."""
    return ServeConfig()


def line() -> LineConfig:
    """The whole line in minutes, from the embedded decoder to an index: set corpus.path, output and, better, pairs."""
    texts = Texts()
    return LineConfig(
        mntp=mntp().replace(steps=60, data=texts),
        simcse=simcse().replace(steps=20, batch_size=32, data=texts.replace(title="ignore")),
        supervised=supervised().replace(steps=30),
        embed=embed(),
        index=index(),
        serve=serve(),
    )


#: Libraries that many people know by heart: enough for a demo to be tried with one's own questions.
DEMO_PACKAGES = ("python", "numpy", "pyarrow", "networkx", "httpx")


def demo() -> DemoConfig:
    """The whole line in minutes: short training runs, the shipped encoder for the index."""
    return DemoConfig(
        packages=DEMO_PACKAGES,
        mntp=mntp().replace(steps=60),
        simcse=simcse().replace(steps=20, batch_size=32),
        supervised=supervised().replace(steps=30),
        embed=embed(),
        index=index(),
        measure=measure().replace(max_queries=800),
        serve=serve(),
        queries=(
            "join two paths into one",
            "read a parquet file into a table",
            "shortest path between two nodes of a graph",
        ),
    )
