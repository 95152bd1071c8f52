"""Backbone: any transformers model as token states, bidirectional or causal, packed or padded.

Decoders become bidirectional by `config.is_causal = False`; whether that holds is found out at load by a self-test
(`selftest.py`), not from a list of families. Legend: T tokens of a pack, P chosen positions, D hidden, V vocabulary.
Knows transformers models and packs. Knows no tokenizer, no pooling, no adapters.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from rayvec.errors import UserError
from rayvec.modeling.attention import NAME, Packing, register
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.tokens import TokenBatch

Attention = Literal["bidirectional", "causal", "native"]
Window = Literal["keep", "full"]

# Where families keep the probability of dropping attention weights (SimCSE's noise), and, for those that drop none, of
# dropping what the layers and the embeddings give.
ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
OTHER_DROPOUTS = (
    *("hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "residual_dropout", "resid_dropout", "mlp_dropout"),
    *("embd_pdrop", "emb_pdrop", "embedding_dropout", "embed_dropout", "dropout", "dropout_rate"),
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Backbone(nn.Module):
    """A model without its vocabulary head, or beside it, called on packs.

    Training calls it as a module (`backbone(packed)` is `hidden_states`), so that wrappers which average gradients see
    the call. `decoder` is the transformers model (or the peft model around it), `head` the vocabulary head or None.
    """

    decoder: Any

    def __init__(
        self, decoder: nn.Module, *, head: nn.Module | None = None, causal: bool = False, packed: bool = True
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.causal = causal
        self.packed = packed
        self.position_offset = 0
        #: Where `attention_dropout` acts, e.g. "attention (attention_dropout=0.3)", "hidden (resid_pdrop=0.3)", or "".
        self.dropout_in = ""
        # The transformers model that decoder and head are parts of; in a tuple, so that its weights count once.
        self._whole: tuple[Any, ...] = ()
        # BERT's kind alone: GPT-2 takes token types too, but adds a vocabulary embedding for them.
        self._takes_token_types = getattr(decoder.config, "type_vocab_size", None) is not None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.decoder.config

    @property
    def dim(self) -> int:
        """Hidden size: the width of the token states."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number type."""
        return next(self.decoder.parameters()).dtype

    def forward(self, packed: PackedBatch, causal: bool | None = None) -> Tensor:
        """The same as `hidden_states`."""
        return self.hidden_states(packed, causal=causal)

    def hidden_states(self, packed: PackedBatch, *, causal: bool | None = None) -> Tensor:
        """The last layer's states of all texts, [T, D]; gradients flow, dropout acts in training mode.

        `causal` overrides how this call reads the texts (for a map of what the mask does); None is the backbone's own.
        """
        causal = self.causal if causal is None else causal
        return self._packed_states(packed, causal) if self.packed else self._padded_states(packed, causal)

    def layer_states(self, packed: PackedBatch, *, causal: bool | None = None) -> Tensor:
        """The states before the first layer and after each, [L + 1, T, D]; the last is `hidden_states`.

        For analyses: all layers of the pack are held at once.
        """
        causal = self.causal if causal is None else causal
        found: list[Tensor] = []
        handles = [layer.register_forward_pre_hook(_keep(found), with_kwargs=True) for layer in self._layers()]
        try:
            last_TD = self.hidden_states(packed, causal=causal)
        finally:
            for handle in handles:
                handle.remove()
        flat = [self._flat(states, packed) for states in found]
        return torch.stack([*flat, last_TD])

    def _layers(self) -> nn.ModuleList:
        """The model's layers: its first list of so many modules, whatever a family calls it."""
        count = int(self.config.get_text_config().num_hidden_layers)
        lists = (module for module in self.decoder.modules() if isinstance(module, nn.ModuleList))
        found = next((modules for modules in lists if len(modules) == count), None)
        if found is None:
            raise UserError(f"{self.config.model_type} models have no list of layers; this analysis cannot be made")
        return found

    def _flat(self, states: Tensor, packed: PackedBatch) -> Tensor:
        return states[0] if self.packed else states.flatten(0, 1)[packed.flat_index_T]

    def logits_at(self, states_TD: Tensor, positions_P: Tensor) -> Tensor:
        """The vocabulary head's logits at chosen positions of the pack only, [P, V]."""
        assert self.head is not None, "load the backbone with head=True"
        logits_PV: Tensor = self.head(states_TD[positions_P])
        config = self.config.get_text_config()
        logits_PV = logits_PV * (getattr(config, "logit_scale", None) or 1.0)
        logits_PV = logits_PV / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits_PV if cap is None else cap * torch.tanh(logits_PV / cap)

    def _packed_states(self, packed: PackedBatch, causal: bool) -> Tensor:
        states_1TD = self.decoder(
            input_ids=packed.input_ids_T[None],
            position_ids=packed.position_ids_T[None] + self.position_offset,
            packing=Packing(packed, causal),
            **self._options(packed.input_ids_T[None], causal),
        ).last_hidden_state
        return states_1TD[0]

    def _padded_states(self, packed: PackedBatch, causal: bool) -> Tensor:
        ids_BL = packed.input_ids_T[packed.padded_index_BL]
        positions_BL = packed.position_ids_T[packed.padded_index_BL]
        states_BLD = self.decoder(
            input_ids=ids_BL,
            attention_mask=packed.padding_mask_BL.long(),
            position_ids=positions_BL + self.position_offset,
            **self._options(ids_BL, causal),
        ).last_hidden_state
        return states_BLD.flatten(0, 1)[packed.flat_index_T]

    def _options(self, input_ids: Tensor, causal: bool) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if causal != self.causal:
            options["is_causal"] = causal
        if self._takes_token_types:
            options["token_type_ids"] = torch.zeros_like(input_ids)
        return options

    def is_noisy(self) -> bool:
        """Whether two passes in training mode differ: some families keep a probability that none of their layers reads.

        The state of the random numbers stays as it was.
        """
        batch = PackedBatch.from_tokens(TokenBatch.from_rows([range(8)]), self.device)
        training, devices = self.training, [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            try:
                self.train()
                return not torch.equal(self(batch), self(batch))
            finally:
                self.train(training)

    def checkpoint_activations(self) -> None:
        """Compute each layer's activations again in the backward pass: half as much work again, far less memory."""
        model = self.decoder
        # The newer name is of transformers 5.2x; the older one warns there.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def saved_config(self) -> Any:
        """A copy of the configuration for a folder: without the name of our attention, which others do not know."""
        config = copy.deepcopy(self.config)
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            part._attn_implementation_internal = None
            part.dtype = self.dtype
        return config

    def save_pretrained(self, path: Path) -> None:
        """Write the whole transformers model (its head too, if loaded with one) as a plain folder."""
        (model,) = self._whole
        own = model.config
        model.config = self.saved_config()
        if self.causal:  # what every decoder is without being told
            del model.config.is_causal
        try:
            with _quiet():
                model.save_pretrained(str(path))
        finally:
            model.config = own

    def use_padding(self) -> None:
        """Leave packed attention for transformers' own kernels over padded batches."""
        self.use_own_kernel()
        self.packed = False

    def use_own_kernel(self) -> None:
        """Switch the model to transformers' kernel: sdpa where the family has it and it is right, else eager."""
        capped = getattr(self.config.get_text_config(), "attn_logit_softcapping", None) is not None
        try:
            # transformers' sdpa leaves the soft-cap of Gemma 2 out.
            self.decoder.set_attn_implementation("eager" if capped else "sdpa")
        except ValueError:
            self.decoder.set_attn_implementation("eager")

    def use_packed_kernel(self) -> None:
        """Switch the model to packed attention."""
        self.decoder.set_attn_implementation(NAME)
        self.packed = True

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        attention: Attention = "bidirectional",
        attention_window: Window = "keep",
        head: bool = False,
        attention_dropout: float | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device = "cpu",
        selftest: bool = True,
    ) -> Self:
        """Load a model folder or a Hugging Face id, and test that it attends as asked.

        `attention_dropout` is set in attention where the family has that, else wherever it has any; `dropout_in` says
        where. Raises UserError when there is no such model, when the family has no dropout at all, or when the model
        stays causal where bidirectional was asked for.
        """
        config = prepare(read_config(reference), attention, attention_window, attention_dropout)
        model = _load_weights(reference, config, head=head, dtype=dtype)
        backbone = cls._of(model, attention, head=head, device=device, selftest=selftest, name=str(reference))
        if attention_dropout is not None:
            backbone.dropout_in = _dropout_in(config.get_text_config(), attention_dropout)
        if attention_dropout and selftest and not backbone.is_noisy():
            raise UserError(
                f"attention_dropout {attention_dropout:g} was set in {backbone.dropout_in} of {reference}, and two "
                "passes are still the same; leave it out and rely on lora.dropout"
            )
        return backbone

    @classmethod
    def create(cls, config: Any, *, attention: Attention = "causal", head: bool = True, selftest: bool = True) -> Self:
        """A model with fresh random weights, for pretraining. The config is copied, never changed."""
        config = prepare(config, attention, "keep", None)
        model = _auto(head).from_config(config, attn_implementation=_implementation(), dtype=torch.float32)
        return cls._of(model, attention, head=head, device="cpu", selftest=selftest, name=config.model_type)

    @classmethod
    def _of(cls, model: Any, attention: Attention, *, head: bool, device: Any, selftest: bool, name: str) -> Self:
        from rayvec.modeling.selftest import settle

        decoder = model.get_decoder() if head else model
        causal = attention == "causal"
        backbone = cls(decoder, head=model.get_output_embeddings() if head else None, causal=causal)
        backbone._whole = (model,)
        backbone.to(device).eval()
        if selftest:
            settle(backbone, name=name, expect=None if attention == "native" else attention)
        return backbone


def _keep(found: list[Tensor]) -> Any:
    """A hook that keeps what a layer is given."""

    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(given[0] if given else named["hidden_states"])

    return hook


def choose_device(name: str) -> str:
    """The device of a name; "auto" is a GPU when there is one. Raises UserError for a GPU where there is none."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}, and torch finds no GPU here; install a CUDA build of torch, or use the CPU")
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(name: str, device: str) -> torch.dtype:
    """The number type of a name; "auto" is bfloat16 on a GPU and float32 elsewhere (CPUs are slower in halves)."""
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; known are auto, {', '.join(DTYPES)}; encoders on a CPU have int8")
    return DTYPES[name]


def prepare(config: Any, attention: Attention, window: Window, attention_dropout: float | None) -> Any:
    """A copy of a transformers configuration with the attention asked for; the original is left alone."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for part in {id(config): config, id(text): text}.values():
        part.use_cache = False
        if attention != "native":
            part.is_causal = attention == "causal"
        if window == "full" and getattr(part, "sliding_window", None):
            # Wider than any text: the layers keep their kinds (and so their rotary bases), and see everything.
            part.sliding_window = max(int(part.max_position_embeddings), 1 << 20)
    if attention_dropout is not None:
        for name in _dropouts(text)[1]:
            setattr(text, name, attention_dropout)
    return config


def _dropouts(config: Any) -> tuple[str, list[str]]:
    """Where a family drops what, attention's weights before all else, and its names for it."""
    kinds = (("attention", ATTENTION_DROPOUTS), ("hidden", OTHER_DROPOUTS))
    found = ((kind, [name for name in names if hasattr(config, name)]) for kind, names in kinds)
    chosen = next(((kind, names) for kind, names in found if names), None)
    if chosen is None:
        raise UserError(f"{config.model_type} models have no dropout to set; leave attention_dropout out")
    return chosen


def _dropout_in(config: Any, probability: float) -> str:
    kind, names = _dropouts(config)
    return f"{kind} ({', '.join(f'{name}={probability:g}' for name in names)})"


def _implementation() -> str:
    register()
    return NAME


def _auto(head: bool) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM if head else transformers.AutoModel


def read_config(reference: str | Path) -> Any:
    """The transformers configuration of a model. Raises UserError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(reference))
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"{reference} is no model that transformers can load ({detail}); give a folder with config.json and "
            "model.safetensors, or a Hugging Face id"
        ) from None


def _load_weights(reference: str | Path, config: Any, *, head: bool, dtype: Any) -> Any:
    """The model with its weights. Raises UserError when they cannot be read, or some are not there."""
    from safetensors import SafetensorError

    options = {"config": config, "dtype": dtype, "output_loading_info": True}
    try:
        model, info = _pretrained(_auto(head), str(reference), options)
    except SafetensorError as error:  # a download or a copy that broke off; no OSError
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"the weights of {reference} are damaged ({detail}); fetch them again") from None
    # A pooler on top of an encoder-only model is never called; any other weight left out would stay random.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(f"{reference} lacks weights that the model needs ({', '.join(missing[:3])} …); get it whole")
    return model


def _pretrained(auto: Any, reference: str, options: dict[str, Any]) -> Any:
    """Load under packed attention; a family that refuses the name gets its own kernels, and later the padded path."""
    with _quiet():
        try:
            return auto.from_pretrained(reference, attn_implementation=_implementation(), **options)
        except (OSError, ValueError) as error:
            if NAME not in str(error):
                raise UserError(f"{reference} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
            return auto.from_pretrained(reference, **options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load report: what matters in them is checked here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
