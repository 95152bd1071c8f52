"""The stages of the recipe as configurations: pretrain, mntp, simcse, supervised. Importing this loads no torch.

    base decoder ── mntp ──▶ encoder folder ── simcse ──▶ encoder folder
                                       └────── supervised ──▶ encoder folder

A stage is a class here (its settings), a way to make its examples (`examples.py`) and a torch module that turns a batch
into a loss (`modules.py`); the STAGES table holds the three together. Knows no model and no data itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rayvec.config import Config
from rayvec.data.collators import Masking
from rayvec.data.pair_files import PairColumns
from rayvec.data.source_config import SourceConfig
from rayvec.modeling.adapters import LoraSettings
from rayvec.modeling.prompts import Prompts
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.pretraining import DecoderConfig


class Texts(Config):
    """Documents to read one by one."""

    kind: Literal["texts"] = "texts"
    source: SourceConfig = SourceConfig()
    #: Sources read after it.
    also: tuple[SourceConfig, ...] = ()
    #: Whether a title is read before its text, on a line of its own, as embed does.
    title: Literal["prepend", "ignore"] = "prepend"
    #: Shorter ones are left out.
    min_characters: int = Field(1, ge=0)
    #: The share of the records that may be no documents (such as text of another encoding); of more the run is refused.
    max_quarantine: float = Field(0.01, ge=0, le=1)
    #: Leave out the documents (5 %, by a hash of the id) that retrieval on docstrings is measured on. By default of
    #: pydocs alone: of a corpus of one's own, every document is read.
    exclude_held_out: bool | None = None
    #: Only the first so many; all by default.
    max_documents: PositiveInt | None = None


class PairSet(Config):
    """Queries with their positives and hard negatives: one of the sets of the supervised stage."""

    name: str
    #: A jsonl, csv, tsv or Parquet file, compressed or not, a folder, a glob or a URI of them, with `query`, `positive`
    #: and `negative` (a text, or a list of texts); or "pydocs", or a Parquet file of documents: first paragraphs of
    #: docstrings ask, the rests answer.
    path: str
    #: Where the files name their columns otherwise.
    columns: PairColumns = PairColumns()
    #: A record without a query or a positive text: stop there, or leave it out and count it.
    on_bad_pair: Literal["fail", "skip"] = "fail"
    #: Put before queries, not pooled; more than one are taken in turn.
    instructions: tuple[str, ...] = ()
    #: Put before positives and negatives too (symmetric tasks).
    both_sides: bool = False
    #: Drawn so many times as often as its size alone would have it.
    weight: PositiveFloat = 1.0


class Pairs(Config):
    """Sets of pairs; every global batch comes from one of them."""

    kind: Literal["pairs"] = "pairs"
    sets: tuple[PairSet, ...] = Field(min_length=1)
    max_examples: PositiveInt | None = None

    @property
    def instruction(self) -> str | None:
        """The one instruction before the queries of all sets; None where they have several, or some have none."""
        (first, *others) = [one.instructions for one in self.sets]
        return first[0] if len(first) == 1 and all(other == first for other in others) else None


Data = Annotated[Texts | Pairs, Field(discriminator="kind")]


class Pretrain(Config):
    """A decoder from nothing, by next-token prediction: how the embedded one was made."""

    kind: Literal["pretrain"] = "pretrain"
    decoder: DecoderConfig = DecoderConfig()


class Mntp(Config):
    """Masked next token prediction: the frozen vocabulary head names each masked token from one place before it."""

    kind: Literal["mntp"] = "mntp"
    #: null trains all weights.
    lora: LoraSettings | None = LoraSettings()
    probability: float = Field(0.2, gt=0, lt=1)
    #: "bert": 80 % mask token, 10 % random, 10 % left; "all": always the mask token.
    masking: Masking = "bert"
    #: Default: the tokenizer's own, else "_".
    mask_token: str | None = None
    #: "separate": a text sees itself alone; "joined": texts end to end, cut at max_length (the reference).
    documents: Literal["separate", "joined"] = "separate"
    #: Masked positions whose logits exist at one time.
    loss_chunk: PositiveInt = 2048
    #: Backward passes a step, each over its share of the texts: the same gradient with less memory.
    accumulate: PositiveInt = 1


class Contrastive(Config):
    """What the contrastive stages share."""

    #: null trains all weights.
    lora: LoraSettings | None = LoraSettings()
    #: 1 / temperature; cosines are multiplied by it.
    scale: PositiveFloat = 20.0
    #: Shorter vectors, the first so many dimensions, that must do the same work (Kusupati et al. 2022): the loss is the
    #: mean over these and the whole vector.
    matryoshka: tuple[PositiveInt, ...] = ()
    #: GradCache (Gao et al. 2021): encode so many texts of average length at a time, and once more in the backward
    #: pass, so that memory is theirs and not the batch's, with the same gradients. Default: the whole batch at once.
    gradient_cache: PositiveInt | None = None


class Simcse(Contrastive):
    """Unsupervised SimCSE: each text twice under different dropout, its two views pulled together."""

    kind: Literal["simcse"] = "simcse"
    #: Of attention weights, in families that have it; null leaves the model's own.
    attention_dropout: float | None = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _two_views_differ(self) -> Simcse:
        if not self.attention_dropout and not (self.lora and self.lora.dropout):
            raise ValueError("without any dropout both views are the same; set attention_dropout or lora.dropout")
        return self


class Supervised(Contrastive):
    """Contrastive learning on queries, their positives and hard negatives."""

    kind: Literal["supervised"] = "supervised"
    scale: PositiveFloat = 50.0
    #: Hard negatives an example; those with fewer are left out.
    hard_negatives: int = Field(1, ge=0)
    #: Train the last adapter further (the paper's start from SimCSE's LoRA) instead of a fresh one on merged weights.
    continue_last: bool = False

    @model_validator(mode="after")
    def _continues_an_adapter(self) -> Supervised:
        if self.continue_last and self.lora is None:
            raise ValueError("continue_last trains an adapter further, and lora=null trains all weights; choose one")
        return self


class RetrievalSet(Config):
    """Retrieval measured while training: nDCG@10 of dense search."""

    kind: Literal["retrieval"] = "retrieval"
    name: str
    #: A folder in BEIR's layout, "pydocs" (held-out documents), or a Parquet file of documents for the same question.
    data: str
    split: str = "test"
    #: The first so many queries; of docstrings, so many documents. Small sets keep training fast.
    max_queries: PositiveInt | None = 300
    #: Put before queries, not pooled. Default: the encoder's own for queries; "" for none.
    instruction: str | None = None


class StsSet(Config):
    """Semantic similarity measured while training: Spearman's correlation."""

    kind: Literal["sts"] = "sts"
    name: str
    #: A csv file, gzipped or not: sentence, sentence, score.
    data: str


class MaskedSet(Config):
    """MNTP's own task measured while it trains: loss and accuracy at masked tokens, the same ones every time."""

    kind: Literal["masked"] = "masked"
    name: str
    #: Texts that it does not train on.
    source: SourceConfig
    #: Only the documents that `data.exclude_held_out` leaves out. By default of pydocs alone.
    held_out: bool | None = None
    #: The first so many, each up to max_length tokens.
    max_documents: PositiveInt = 200


EvaluationSet = Annotated[RetrievalSet | StsSet | MaskedSet, Field(discriminator="kind")]
StageConfig = Annotated[Pretrain | Mntp | Simcse | Supervised, Field(discriminator="kind")]


class PromptSettings(Config):
    """How texts are dressed from this stage on, as the encoder folder keeps it; null leaves what the start says."""

    #: The chat format: none, llama3, inst, gemma, qwen.
    template: str | None = None
    #: By name, laid over those of the start: "query" is what search puts before a query. The supervised stage stores
    #: the instruction of its sets as "query" by itself, where all have one and the same.
    instructions: Mapping[str, str] = {}
    #: How an instruction stands before a text; holds {instruction}.
    instruction_format: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields of Prompts that change."""
        return {name: value for name, value in self.model_dump().items() if value}

    @model_validator(mode="after")
    def _prompts_take_it(self) -> PromptSettings:
        Prompts().changed(self.given)
        return self


class TrainingConfig(Config):
    """One run of one stage: everything a worker needs."""

    stage: StageConfig
    data: Data = Texts()
    #: "tiny-decoder" (embedded), a transformers model, or the encoder folder of the stage before.
    start: str = "tiny-decoder"
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: PositiveInt = 1000
    #: Texts (mntp, pretrain: sequences of max_length tokens) in a step, over all workers.
    batch_size: PositiveInt = 32
    #: Tokens of a text in training; the encoder's own limit stays.
    max_length: PositiveInt = 512
    seed: int = Field(0, ge=0)
    #: Number type of the frozen weights. "auto": bfloat16 on a GPU, float32 on a CPU.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    #: Changes how texts are read from this stage on; null keeps what the start says.
    pooling: Literal["mean", "weighted_mean", "last_token", "bos"] | None = None
    attention: Literal["bidirectional", "causal", "native"] | None = None
    attention_window: Literal["keep", "full"] | None = None
    prompts: PromptSettings = PromptSettings()
    log_every: PositiveInt = 10
    #: Steps between two checkpoints; there is always one at the end.
    checkpoint_every: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    #: Compare all ranks' weights, bit by bit, every so many steps; 0: never.
    compare_ranks_every: int = Field(0, ge=0)
    #: Measured before the first step, every `evaluate_every` steps and after the last; drawn among the curves.
    evaluation: tuple[EvaluationSet, ...] = ()
    evaluate_every: PositiveInt = 100
    #: Where numbers go beside metrics.jsonl. mlflow and wandb must be installed.
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _data_fits_the_stage(self) -> TrainingConfig:
        wanted = STAGES[self.stage.kind].data
        if self.data.kind != wanted:
            raise ValueError(
                f"stage {self.stage.kind} trains on {wanted}, and data.kind is {self.data.kind}; change it"
            )
        return self

    @model_validator(mode="after")
    def _can_be_measured(self) -> TrainingConfig:
        masked = [one.name for one in self.evaluation if isinstance(one, MaskedSet)]
        if masked and not isinstance(self.stage, Mntp):
            raise ValueError(f"evaluation {masked[0]}: kind masked is for stage mntp, and this is {self.stage.kind}")
        return self

    @model_validator(mode="after")
    def _recomputes_once(self) -> TrainingConfig:
        if self.gradient_checkpointing and isinstance(self.stage, Contrastive) and self.stage.gradient_cache:
            raise ValueError(
                "gradient_cache computes the texts twice already; set gradient_checkpointing=false with it"
            )
        return self

    @property
    def readings(self) -> Mapping[str, Any]:
        """What changes in how texts are read, for `open_for_training`."""
        names = ("pooling", "attention", "attention_window")
        changes: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        prompts = self.prompts.given
        if isinstance(self.data, Pairs) and self.data.instruction:
            prompts["instructions"] = {"query": self.data.instruction, **self.prompts.instructions}
        return {**changes, "prompts": prompts} if prompts else changes


class Stage(NamedTuple):
    """Where the parts of a stage are: what it trains on, "module:function" of its examples and of its torch module."""

    data: Literal["texts", "pairs"]
    prepare: str
    module: str


#: A new stage is a class above, a row here, and a function and a class where the row says.
STAGES: dict[str, Stage] = {
    "pretrain": Stage("texts", "rayvec.training.examples:prepare_stream", "rayvec.training.modules:PretrainModule"),
    "mntp": Stage("texts", "rayvec.training.examples:prepare_masked", "rayvec.training.modules:MntpModule"),
    "simcse": Stage("texts", "rayvec.training.examples:prepare_texts", "rayvec.training.modules:SimcseModule"),
    "supervised": Stage("pairs", "rayvec.training.examples:prepare_pairs", "rayvec.training.modules:SupervisedModule"),
}
