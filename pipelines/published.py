"""The published runs of LLM2Vec as configurations (arXiv 2404.05961, appendix D; the reference's train_configs).

A family's recipes are a `Family` with its own numbers put in. Where ours differ, on purpose: the learning rate falls
over the steps that are run (the reference plans it over three epochs and stops at step 1000, so it hardly falls); a
text sees itself alone where the reference joins texts and cuts (`stage.documents=joined` does as it does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipelines._advise_config import AdviseConfig
from pipelines.compact import CompactConfig
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import LineConfig
from pipelines.train import TrainConfig
from pipelines.update import UpdateConfig
from rayvec.data.collators import Masking
from rayvec.data.source_config import SourceConfig
from rayvec.modeling.adapters import LoraSettings
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Pairs, PairSet, PromptSettings, Simcse, Supervised, Texts

LORA = LoraSettings(rank=16, alpha=32, dropout=0.05)
#: One text a line; set data.source.path to WikiText-103 raw (mntp) or wiki1m_for_simcse.txt (simcse).
#: Not kind="text": records of jsonl or csv put there are to be refused, not read as they stand.
LINES = SourceConfig(lines=True)

_MIRACL = "Given a question, retrieve Wikipedia passages that answer the question"
_WEB = "Given a web search query, retrieve relevant {} that answer the query"
#: What search puts before a query: the most general of them, of the largest retrieval set (MS MARCO's passages).
QUERY = _WEB.format("passages")
_CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"

#: E5's public mix: name and instructions, taken in turn. No weights: the paper's shares (ELI5 0.1, MS MARCO's passages
#: 0.5 and documents 0.2, Quora 0.1, T2Ranking 0.5) are drawn in the published files already.
E5_SETS: dict[str, tuple[str, ...]] = {
    "allnli": (
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Retrieve semantically similar text",
    ),
    "dureader": (_CHINESE,),
    "eli5": ("Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",),
    "fever": ("Given a claim, retrieve documents that support or refute the claim",),
    "hotpot_qa": ("Given a multi-hop question, retrieve documents that can help answer the question",),
    "miracl": (_MIRACL,),
    "mrtydi": (_MIRACL,),
    "msmarco_passage": (QUERY,),
    "msmarco_document": (_WEB.format("documents"),),
    "nq": (_MIRACL,),
    "quora_duplicates": (
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        "Find questions that have the same meaning as the input question",
    ),
    "squad": ("Retrieve Wikipedia passages that answer the question",),
    "t2ranking": (_CHINESE,),
    "trivia_qa": ("Retrieve Wikipedia passages that answer the question",),
}
#: Sets whose sides are alike: the instruction stands before both, as the paper says (the reference's code for it is
#: never reached). AllNLI is so with its second instruction alone, and is left one-sided.
SYMMETRIC = ("quora_duplicates",)


Train = Callable[[], TrainConfig]
Recipes = tuple[
    Train,
    Train,
    Train,
    Callable[[], EmbedConfig],
    Callable[[], IndexConfig],
    Callable[[], UpdateConfig],
    Callable[[], CompactConfig],
    Callable[[], AdviseConfig],
    Callable[[], LineConfig],
]


@dataclass(frozen=True)
class Family:
    """A base model and where its runs differ from the others'. Each stage takes the output of the one before."""

    base: str
    #: Share of the tokens that are masked, and how: BERT's way, or all by the mask token.
    probability: float = 0.2
    masking: Masking = "bert"
    #: "full" opens sliding windows, where the base has them; recorded in the encoder, so later stages keep it.
    attention_window: Literal["keep", "full"] | None = None
    simcse_batch: int = 128
    #: What PCA reduces vectors to in the index; None keeps them all.
    dimensions: int | None = 1024

    def recipes(self) -> Recipes:
        """mntp, simcse, supervised, embed, index, update, compact, advise, line: the names of a recipe module."""
        stages = (self.mntp, self.simcse, self.supervised, self.embed, self.index)
        return (*stages, self.update, self.compact, self.advise, self.line)

    def mntp(self) -> TrainConfig:
        """MNTP on WikiText-103: set data.source.path and output."""
        return TrainConfig(
            stage=Mntp(lora=LORA, probability=self.probability, masking=self.masking),
            data=Texts(source=LINES),
            start=self.base,
            base=self.base,
            optimizer=OptimizerConfig(learning_rate=5e-5, schedule="linear"),
            steps=1000,
            batch_size=32,
            max_length=512,
            gradient_checkpointing=True,
            attention_window=self.attention_window,
            workers=1,
        )

    def simcse(self) -> TrainConfig:
        """SimCSE on sentences of Wikipedia: set start (what mntp made), data.source.path and output."""
        return TrainConfig(
            stage=Simcse(lora=LORA, scale=20.0, attention_dropout=0.3),
            data=Texts(source=LINES),
            start="",
            base=self.base,
            optimizer=OptimizerConfig(learning_rate=3e-5, schedule="linear"),
            steps=1000,
            batch_size=self.simcse_batch,
            max_length=128,
            gradient_checkpointing=True,
            workers=1,
        )

    def supervised(self) -> TrainConfig:
        """Contrastive learning on E5's sets, in e5-data: set start (what mntp or simcse made) and output."""
        sets = tuple(
            PairSet(name=name, path=f"e5-data/{name}*.jsonl", instructions=instructions, both_sides=name in SYMMETRIC)
            for name, instructions in E5_SETS.items()
        )
        return TrainConfig(
            stage=Supervised(lora=LORA, scale=50.0, hard_negatives=1),
            data=Pairs(sets=sets),
            start="",
            base=self.base,
            optimizer=OptimizerConfig(learning_rate=2e-4, schedule="linear", warmup_steps=300),
            steps=1000,
            batch_size=512,
            max_length=512,
            gradient_checkpointing=True,
            workers=8,
            prompts=PromptSettings(instructions={"query": QUERY}),
        )

    def embed(self) -> EmbedConfig:
        """Embed on GPUs with what a stage made: set encoder to its output, source.path and output."""
        return EmbedConfig(encoder="", dtype="float16", num_gpus=1)

    def index(self) -> IndexConfig:
        """Index what embed made, reduced by PCA where vectors are long: set embeddings and output."""
        return IndexConfig(dimensions=self.dimensions)

    def update(self) -> UpdateConfig:
        """Put new embeddings into an index and take ids out of it: set index, and embeddings or delete."""
        return UpdateConfig()

    def compact(self) -> CompactConfig:
        """Build an updated index anew as one segment: set index."""
        return CompactConfig()

    def advise(self) -> AdviseConfig:
        """Which dimensions and index suit what embed made, measured: set embeddings and output."""
        return AdviseConfig()

    def line(self) -> LineConfig:
        """The whole line, from the base to an index: set corpus.path, output, and pairs or e5-data."""
        return LineConfig(
            mntp=self.mntp(), simcse=self.simcse(), supervised=self.supervised(), embed=self.embed(), index=self.index()
        )
