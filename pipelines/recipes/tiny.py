"""The embedded model's recipes: the whole line on two cores, on the documentation of this Python environment."""

from __future__ import annotations

from pipelines._advise_config import AdviseConfig
from pipelines._systems import SystemConfig
from pipelines._tasks import ClassificationTask, ClusteringTask, RerankingTask, RetrievalTask, SimilarityTask, WordTask
from pipelines.adaptation import AdaptationConfig
from pipelines.analyses import MaskMapConfig, PrefixConfig
from pipelines.compact import CompactConfig
from pipelines.demo import DemoConfig
from pipelines.embed import EmbedConfig
from pipelines.experiments import EfficiencyConfig, MaskingConfig, PoolingConfig
from pipelines.export import ExportConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import LineConfig
from pipelines.measure import MeasureConfig
from pipelines.mine import MineConfig
from pipelines.suite import SuiteConfig
from pipelines.table import TableConfig
from pipelines.train import TrainConfig
from pipelines.update import UpdateConfig
from pipelines.words import WordsConfig
from rayvec.data.source_config import SourceConfig
from rayvec.modeling.adapters import LoraSettings
from rayvec.serving.config import Replicas, ServeConfig
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, RetrievalSet, Simcse, Supervised, Texts

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


def export() -> ExportConfig:
    """The embedded encoder for sentence-transformers and transformers: set output, and encoder to one of yours."""
    return ExportConfig(encoder="tiny")


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


#: The rows of the paper's comparisons, from one folder: its base, and the base after its stages.
UNI_EOS = SystemConfig(name="Uni + EOS", stages=0, attention="causal", pooling="last_token")
UNI_WEIGHTED = SystemConfig(name="Uni + weighted mean", stages=0, attention="causal", pooling="weighted_mean")
BI = SystemConfig(name="Bi + mean", stages=0, attention="bidirectional", pooling="mean")
NO_SIMCSE = SystemConfig(name="LLM2Vec w/o SimCSE", stages=1)
LLM2VEC = SystemConfig(name="LLM2Vec", stages=2)
SUPERVISED = SystemConfig(name="LLM2Vec + supervised", stages=3)
ECHO = SystemConfig(name="Echo", kind="echo", stages=0, attention="causal", pooling="mean")
BM25 = SystemConfig(name="BM25", kind="lexical")
HYBRID = SystemConfig(name="hybrid", kind="hybrid", dense=SUPERVISED.name)
#: What the paper finds: each stage above the one before it, and weighted mean above the last token.
PAPER_ORDER = (
    (UNI_WEIGHTED.name, UNI_EOS.name),
    (NO_SIMCSE.name, UNI_WEIGHTED.name),
    (NO_SIMCSE.name, BI.name),
    (LLM2VEC.name, NO_SIMCSE.name),
    (LLM2VEC.name, UNI_WEIGHTED.name),
    (SUPERVISED.name, LLM2VEC.name),
)
PYDOCS_TASKS = (
    RetrievalTask(name="pydocs", data="pydocs", max_queries=1000),
    RerankingTask(name="pydocs reranking", data="pydocs", max_queries=1000),
    ClassificationTask(name="pydocs packages", data="pydocs"),
    ClusteringTask(name="pydocs clusters", data="pydocs"),
)


def ablation() -> TableConfig:
    """The paper's six systems out of one encoder folder, and whether the paper's order holds: set output."""
    systems = (UNI_EOS, UNI_WEIGHTED, BI, NO_SIMCSE, LLM2VEC, SUPERVISED)
    return TableConfig(title="Ablation", systems=systems, tasks=PYDOCS_TASKS, order=PAPER_ORDER)


def systems() -> TableConfig:
    """Every system of the paper with its cost, Echo, BM25 and hybrid among them: set output."""
    rows = (UNI_EOS, UNI_WEIGHTED, BI, NO_SIMCSE, LLM2VEC, SUPERVISED, ECHO, BM25, HYBRID)
    order = (*PAPER_ORDER, (LLM2VEC.name, ECHO.name), (HYBRID.name, BM25.name), (HYBRID.name, SUPERVISED.name))
    return TableConfig(title="Every system", systems=rows, tasks=PYDOCS_TASKS, order=order)


def public_sets() -> TableConfig:
    """Every system on public sets in the usual layouts: set root (their folder) and output."""
    words = {"kind": "words", "position": "word", "max_sentences": 1000}
    sets = (
        SimilarityTask(name="STS-B", data="sts/stsb/stsb-en-test.csv.gz"),
        RetrievalTask(name="SciFact", data="ir/scifact", max_documents=1500),
        RetrievalTask(name="Cranfield", data="ir/cranfield"),
        RetrievalTask(name="CACM", data="ir/cacm"),
        RerankingTask(name="SciFact reranking", data="ir/scifact", max_documents=1500),
        ClassificationTask(name="Banking77", data="classification/banking77"),
        ClusteringTask(name="Banking77 clusters", data="classification/banking77/test.csv.gz"),
        WordTask.parse({"name": "WikiANN (NER)", "train": "token/wikiann_en/train.conll.gz", **words}).replace(
            test="token/wikiann_en/test.conll.gz"
        ),
        WordTask.parse({"name": "MASC (POS)", "train": "token/masc_tagged.zip", **words}),
        WordTask.parse({"name": "CoNLL-2000 (chunks)", "train": "token/conll2000.zip", **words}),
    )
    rows = tuple(system for system in systems().systems if system.name != UNI_EOS.name)
    order = tuple(pair for pair in systems().order if UNI_EOS.name not in pair)
    tasks = (*sets, PYDOCS_TASKS[0])
    return TableConfig(title="Every system on public sets", systems=rows, tasks=tasks, order=order)


def adaptation() -> AdaptationConfig:
    """Did training help on a corpus of your own? No labels: set source.path, after.encoder and output."""
    return AdaptationConfig(before=BI.replace(name="before"), after=SystemConfig(name="after", encoder="tiny"))


def mask_map() -> MaskMapConfig:
    """How much the embedded decoder's states change when the causal mask goes, by layer: set output."""
    return MaskMapConfig(system=BI.replace(name="tiny-decoder", encoder="tiny"))


def prefix_test() -> PrefixConfig:
    """Does the beginning of a text know how it goes on, before and after each stage? Set output."""
    return PrefixConfig(systems=(UNI_WEIGHTED.replace(name="Uni", pooling="mean"), BI, NO_SIMCSE, LLM2VEC, SUPERVISED))


def pooling() -> PoolingConfig:
    """EOS, mean and weighted mean of every kind of encoder; trains SimCSE from the base, twice: set output."""
    return PoolingConfig(simcse=simcse().replace(workers=0), tasks=PYDOCS_TASKS[:1])


def masking_sweep() -> MaskingConfig:
    """MNTP at 20 to 80 % masked, BERT's way and all masked: eight short trainings: set output."""
    return MaskingConfig(mntp=mntp().replace(workers=0, steps=60), tasks=PYDOCS_TASKS[:1])


def sample_efficiency() -> EfficiencyConfig:
    """Score against supervised steps, from the base and from after each stage: set output."""
    measured = RetrievalSet(name="pydocs", data="pydocs", max_queries=500)
    run = supervised().replace(workers=0, evaluation=(measured,), evaluate_every=10)
    return EfficiencyConfig(supervised=run)


def mteb() -> SuiteConfig:
    """The embedded encoder on MTEB: set suite (mteb-paper-15, mteb-paper-56) or tasks, and output."""
    return SuiteConfig(system=SystemConfig(name="tiny", encoder="tiny"))


def words() -> WordsConfig:
    """Probe words for chunks, entities or parts of speech: set train, test (tagged sentences) and output."""
    # Its 60 steps of MNTP have not moved words to the place before them: there the probe reads far less.
    return WordsConfig(encoder="tiny", position="word")


def serve() -> ServeConfig:
    """Serve an index: set index. In one process, which on one machine answers soonest and takes least memory."""
    return ServeConfig(replicas=Replicas(together=True))


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
