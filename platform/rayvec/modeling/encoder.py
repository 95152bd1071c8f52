"""Encoders: texts in, vectors out. The Protocol that every stage asks for, TextEncoder, and the loaders by reference.

Importing this module loads no torch; a TextEncoder loads it when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from rayvec.errors import UserError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.batching_plan import plan_batches
from rayvec.modeling.folder import EncoderFolder, open_encoder, open_model, open_tokenizer, write_folder
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.manifest import PoolingName
from rayvec.modeling.prompts import Prompts
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Windowing, Windows

if TYPE_CHECKING:
    import torch

    from rayvec.modeling.backbone import Backbone

#: The poolings under which a part of a text has a vector of its own.
LATE_POOLINGS = ("mean", "weighted_mean")
#: Tokens of one forward pass: enough to keep the matrix products busy. On a CPU, so few that what lies between two
#: products stays in its caches, and its memory in the process; on a GPU an 8B model's activations must fit.
TOKEN_BUDGETS = {"cpu": 1024, "cuda": 16384}


@runtime_checkable
class Tokenizing(Protocol):
    """The CPU side of an encoder: tokens from texts, no weights."""

    max_length: int

    @property
    def fingerprint(self) -> Fingerprint:
        """What makes the vectors; see Fingerprint."""

    @property
    def instructions(self) -> Mapping[str, str]:
        """The encoder's instructions by name; "query" is what search puts before a query. May be empty."""

    def reading(self, max_length: int) -> Tokenizing:
        """The CPU side that reads so many tokens of a text. Raises UserError for more than the model has positions."""

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Token ids and pooled spans, one row a text, cut to `max_length` tokens."""

    def cut(
        self, texts: Sequence[str], windowing: Windowing, instruction: str | None = None
    ) -> tuple[TokenBatch, Windows]:
        """The passes that read all of the texts, and the windows in them; see `windows.cut`."""


@runtime_checkable
class Vectorizing(Protocol):
    """The side of an encoder that needs its weights: vectors from tokens."""

    dim: int

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        """Vectors float32 [n, dim] in the order of the rows, whatever batches are made inside."""

    def encode_windows(self, batch: TokenBatch, windows: Windows) -> np.ndarray:
        """Vectors float32 [W, dim] of the windows, each pooled from its tokens of a row of the batch."""


@runtime_checkable
class Encoder(Tokenizing, Vectorizing, Protocol):
    """Texts to vectors. Equal fingerprints mean equal vectors. Token ids are below `vocab_size`."""

    vocab_size: int

    def places(self, lengths: np.ndarray) -> int:
        """Tokens that are computed for rows of these lengths, padding included."""

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """`encode_tokens(tokenize(texts, instruction))`: float32 [n, dim]; [dim] of one text that is no list."""


class TokenizerOnly:
    """The CPU side of a TextEncoder: tokenizes and knows the fingerprint, without weights."""

    def __init__(self, folder: EncoderFolder) -> None:
        self.folder = folder
        self.max_length = folder.manifest.max_length

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the encoder it belongs to."""
        return self.folder.fingerprint

    @property
    def instructions(self) -> Mapping[str, str]:
        """The encoder's instructions by name."""
        return self.folder.manifest.prompts.instructions

    def reading(self, max_length: int) -> TokenizerOnly:
        """The CPU side that reads so many tokens of a text. Raises UserError for more than the model has positions."""
        return TokenizerOnly(self.folder.reading(max_length))

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Token ids and pooled spans; see TextTokenizer."""
        return self.folder.tokenizer.tokenize(texts, instruction)

    def cut(
        self, texts: Sequence[str], windowing: Windowing, instruction: str | None = None
    ) -> tuple[TokenBatch, Windows]:
        """The passes that read all of the texts, and the windows in them; see TextTokenizer and `windows.cut`.

        Raises UserError for late windows when the encoder's pooling is no mean: other states stand for a whole pass.
        """
        if windowing.late and self.folder.manifest.pooling not in LATE_POOLINGS:
            raise UserError(
                f"long=late needs an encoder whose pooling is {' or '.join(LATE_POOLINGS)}, and this one's is "
                f"{self.folder.manifest.pooling}; use long=windows"
            )
        return self.folder.tokenizer.cut(texts, windowing, instruction)


class TextEncoder(TokenizerOnly):
    """A language model as an encoder: `TextEncoder.load(folder).encode(texts)`.

    Adapters are merged into the weights, there is no vocabulary head, and a text's vector does not depend on what else
    is in the batch (≤ 1e-5 in fp32).
    """

    def __init__(self, folder: EncoderFolder, backbone: Backbone, token_budget: int | None = None) -> None:
        super().__init__(folder)
        self.backbone = backbone
        self.dim = folder.manifest.dim
        self.vocab_size = int(backbone.config.get_text_config().vocab_size)
        if self.dim > backbone.dim:
            raise UserError(f"dim {self.dim} is more than the model's {backbone.dim}; lower it")
        self.token_budget = token_budget or TOKEN_BUDGETS.get(backbone.device.type, 4096)

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        base: str | Path | None = None,
        verify: bool = True,
    ) -> Self:
        """Load an encoder folder, "tiny", a plain transformers model, a URI or a Hugging Face id.

        device: "auto" is a GPU when there is one, for int8 the CPU. dtype: what is computed in (vectors are float32
        whatever it is, and the fingerprint stays): "auto" is bfloat16 on a GPU and float32 on a CPU; "int8", on a CPU
        alone, is faster and gives vectors at a cosine of 0.995 or more to those of float32 (see `int8`). Raises
        UserError, MismatchError or VerificationError (see `folder.open_encoder`), each naming the cure.
        """
        return cls._of(open_encoder(reference, base=base, verify=verify), device, dtype, token_budget)

    @classmethod
    def from_decoder(
        cls,
        base: str | Path,
        *,
        adapters: Sequence[str | Path] = (),
        attention: Literal["bidirectional", "causal", "native"] = "bidirectional",
        attention_window: Literal["keep", "full"] = "keep",
        pooling: PoolingName = "mean",
        prompts: Prompts | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        dim: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> Self:
        """An encoder from a transformers model and adapters in merge order."""
        settings: dict[str, Any] = {
            "attention": attention,
            "attention_window": attention_window,
            "pooling": pooling,
            "normalize": normalize,
            **({"dim": dim} if dim else {}),
        }
        folder = open_model(base, adapter_folders=adapters, max_length=max_length, prompts=prompts, **settings)
        return cls._of(folder, device, dtype, token_budget)

    @classmethod
    def from_llm2vec(
        cls,
        mntp: str | Path,
        adapter: str | Path | None = None,
        *,
        base: str | Path | None = None,
        compat: Literal["llm2vec"] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> Self:
        """An encoder from adapters that McGill-NLP/llm2vec published: base, MNTP, then SimCSE's or supervised ones.

        `compat="llm2vec"` reads texts exactly as the reference does; see `llm2vec.open_llm2vec`, also for the errors.
        """
        from rayvec.modeling.llm2vec import open_llm2vec

        return cls._of(open_llm2vec(mntp, adapter, base=base, compat=compat), device, dtype, token_budget)

    @classmethod
    def from_folder(
        cls, folder: EncoderFolder, *, device: str = "auto", dtype: str = "auto", token_budget: int | None = None
    ) -> Self:
        """An encoder of an opened folder: of one that was read with other settings, or with fewer adapters."""
        return cls._of(folder, device, dtype, token_budget)

    @classmethod
    def _of(cls, folder: EncoderFolder, device: str, dtype: str, token_budget: int | None) -> Self:
        from rayvec.modeling import adapters
        from rayvec.modeling.backbone import Backbone, choose_device, choose_dtype
        from rayvec.modeling.blocked import block_weights
        from rayvec.modeling.int8 import quantize

        if dtype == "int8" and device not in ("auto", "cpu"):
            raise UserError(f"dtype=int8 is for a CPU, and the device is {device}; use device=cpu, or leave dtype out")
        place = "cpu" if dtype == "int8" else choose_device(device)
        backbone = Backbone.load(
            folder.weights,
            attention=folder.manifest.attention,
            attention_window=folder.manifest.attention_window,
            dtype=choose_dtype("float32" if dtype == "int8" else dtype, place),
            device=place,
        )
        adapters.load_merged(backbone, folder.adapters)
        if dtype == "int8":
            quantize(backbone, str(folder.weights))
        elif place == "cpu":
            block_weights(backbone)
        return cls(folder, backbone.eval(), token_budget)

    @property
    def arithmetic(self) -> str:
        """In which numbers it computes, and on what: "float32-cpu". Of one fingerprint, vectors differ by it."""
        numbers = "int8" if self._is_rounded else str(self.backbone.dtype).removeprefix("torch.")
        return f"{numbers}-{self.backbone.device.type}"

    @property
    def _is_rounded(self) -> bool:
        from rayvec.modeling.int8 import Int8Linear

        return any(isinstance(module, Int8Linear) for module in self.backbone.modules())

    def save(self, path: str | Path, merged: bool = False) -> None:
        """Write an encoder folder: adapters and a reference to their base, or (merged) one model that needs neither.

        A merged folder loads in plain transformers and in sentence-transformers; see `export`.
        """
        if merged or self.folder.manifest.merged:
            from rayvec.modeling.export import export

            if self._is_rounded:
                raise UserError("dtype=int8: the weights to save were rounded at load; load it with dtype=float32")
            export(self, Path(path))
            return
        folder = self.folder
        write_folder(Path(path), folder.manifest, folder.tokenizer, self.backbone.saved_config(), folder.adapters)

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Vectors float32 [n, dim] of the texts, each read after the instruction (which is not pooled).

        Of one text that is no list, its vector [dim].
        """
        if isinstance(texts, str):
            return self.encode([texts], instruction)[0]
        return self.encode_tokens(self.tokenize(texts, instruction))

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        """Vectors float32 [n, dim] in the order of the rows; sorted by length and packed inside.

        Of equal rows one is computed: corpora repeat titles and boilerplate, and many ask the same at once.
        """
        import torch

        batch, place_N = batch.distinct()
        result = np.empty((len(batch), self.dim), np.float32)
        plans = list(plan_batches(batch.lengths, self.token_budget, padded=not self.backbone.packed))
        with torch.inference_mode():
            # Copies to the host come last: on a GPU nothing waits between two batches.
            vectors = [self._vectors(batch.select(rows)) for rows in plans]
            for rows, vectors_BD in zip(plans, vectors, strict=True):
                result[rows] = vectors_BD.cpu().numpy()
        return result if len(result) == len(place_N) else result[place_N]

    def encode_windows(self, batch: TokenBatch, windows: Windows) -> np.ndarray:
        """Vectors float32 [W, dim] of the windows, each pooled from its tokens of a row of the batch: late chunking."""
        import torch

        from rayvec.modeling.batching import PackedBatch
        from rayvec.modeling.pooling import pool_spans

        manifest = self.folder.manifest
        result = np.empty((len(windows), self.dim), np.float32)
        first_P = np.empty(len(batch), np.int64)  # where each row begins in its pack
        with torch.inference_mode():
            for rows in plan_batches(batch.lengths, self.token_budget, padded=not self.backbone.packed):
                first_P[rows] = np.cumsum(batch.lengths[rows]) - batch.lengths[rows]
                inside = np.flatnonzero(np.isin(windows.row, rows))
                states_TD = self.backbone.hidden_states(
                    PackedBatch.from_tokens(batch.select(rows), self.backbone.device)
                )
                start_W = first_P[windows.row[inside]] + windows.start[inside]
                vectors_WD = pool_spans(
                    manifest.pooling,
                    states_TD,
                    start_W,
                    start_W + windows.lengths[inside],
                    dim=self.dim,
                    normalize=manifest.normalize,
                )
                result[inside] = vectors_WD.cpu().numpy()
        return result

    def places(self, lengths: np.ndarray) -> int:
        """Tokens that are computed for rows of these lengths; more than they have only where the model must pad."""
        if self.backbone.packed:
            return int(lengths.sum())
        batches = plan_batches(lengths, self.token_budget, padded=True)
        return sum(len(rows) * int(lengths[rows].max()) for rows in batches)

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """The last layer's state of each token, float32 [sum T, the model's hidden size], as `input_ids` lie."""
        import torch

        from rayvec.modeling.batching import PackedBatch

        result = np.empty((len(batch.input_ids), self.backbone.dim), np.float32)
        with torch.inference_mode():
            for rows in plan_batches(batch.lengths, self.token_budget, padded=not self.backbone.packed):
                chosen = np.isin(np.arange(len(batch)), rows)  # the same rows, in the order of the batch
                packed = PackedBatch.from_tokens(batch.select(np.flatnonzero(chosen)), self.backbone.device)
                states_TD = self.backbone.hidden_states(packed)
                result[np.repeat(chosen, batch.lengths)] = states_TD.float().cpu().numpy()
        return result

    def _vectors(self, batch: TokenBatch) -> torch.Tensor:
        from rayvec.modeling.batching import PackedBatch
        from rayvec.modeling.pooling import pool

        packed = PackedBatch.from_tokens(batch, self.backbone.device)
        states_TD = self.backbone.hidden_states(packed)
        manifest = self.folder.manifest
        return pool(manifest.pooling, states_TD, packed, dim=self.dim, normalize=manifest.normalize)


def load_encoder(reference: str, *, dtype: str = "auto", device: str = "auto") -> Encoder:
    """An encoder by reference: "hash", "hash:64", "tiny" (the embedded one), a folder, a URI or a Hugging Face id.

    dtype, device: in which numbers it computes, and on what, see TextEncoder.load; a HashEncoder has no choice. Ray
    hides no GPU from an actor that asked for none, so an actor says which it means.
    """
    if _is_hash(reference):
        return HashEncoder.parse(reference)
    return TextEncoder.load(reference, dtype=dtype, device=device)


def load_tokenizer_only(reference: str, *, verify: bool = True) -> Tokenizing:
    """The CPU side of the encoder that `load_encoder` gives: tokenizes, knows the fingerprint, loads no weights.

    verify: whether the weights are read to verify them; without, see `folder.open_tokenizer`.
    """
    if _is_hash(reference):
        return HashEncoder.parse(reference)
    return TokenizerOnly(open_encoder(reference) if verify else open_tokenizer(reference))


def _is_hash(reference: str) -> bool:
    return reference == "hash" or reference.startswith("hash:")
