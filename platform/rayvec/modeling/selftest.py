"""The load-time self-test: does this model attend as asked, packed and padded? Facts, not a list of families.

Known silent failures that it turns into errors: models that stay causal (wholly, in some layers, or only without
padding), and packed texts that leak into each other. Knows a Backbone. Knows no family's name.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rayvec.errors import UserError
from rayvec.modeling.backbone import Backbone
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.tokens import TokenBatch

Expect = Literal["bidirectional", "causal"] | None
SHORT, LONG = 5, 9  # tokens of the two texts: unequal, so that one is padded
# Largest error relative to the largest state: rounding on one side, a leak (of order 1) on the other.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF_TOLERANCE = 0.1


def settle(backbone: Backbone, *, name: str, expect: Expect) -> None:
    """Keep packed attention if it passes, else fall back to padding; raise UserError when that fails too."""
    problem = _problem(backbone, expect) if backbone.packed else "no packed attention"
    if problem is None:
        return
    backbone.use_padding()
    problem = _problem(backbone, expect)
    if problem is not None:
        raise UserError(
            f"{name} ({backbone.config.model_type}) cannot be used with attention={expect or 'native'}: {problem}. "
            "Choose a decoder whose layers are all plain attention (llama, mistral, qwen2, qwen3, gemma, phi3 …), "
            "or attention=causal"
        )


def _problem(backbone: Backbone, expect: Expect) -> str | None:
    """What is wrong in one clause, or None."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            return _check(backbone, expect)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        return f"a call fails ({' '.join(str(error).split())[:160]})"
    finally:
        backbone.train(training)


def _check(backbone: Backbone, expect: Expect) -> str | None:
    short, long = _texts(backbone)
    tolerance = TOLERANCES.get(backbone.dtype, HALF_TOLERANCE)
    alone_short, alone_long = _states(backbone, [short]), _states(backbone, [long])
    if expect is not None and (problem := _direction(backbone, long, alone_long, short, expect)):
        return problem
    if expect == "bidirectional" and (layer := _causal_layer(backbone, long)) is not None:
        return f"its layer {layer} stays causal"
    together = _states(backbone, [short, long])
    if not _close(together, torch.cat([alone_short, alone_long]), tolerance):
        return "texts in one batch change each other's states"
    if not _numbers_positions_as_usual(backbone, long, tolerance):
        return "its own call gives other states than a packed one"
    return None


def _numbers_positions_as_usual(backbone: Backbone, text: np.ndarray, tolerance: float) -> bool:
    """Whether our call gives the states of the model's own, plain call; finds the offset of RoBERTa's positions."""
    plain = _plain_states(backbone, text)
    offsets = (0, int(getattr(backbone.config, "pad_token_id", None) or 0) + 1)
    for offset in offsets:
        backbone.position_offset = offset
        if _close(_states(backbone, [text]), plain, tolerance):
            return True
    backbone.position_offset = 0
    return False


def _plain_states(backbone: Backbone, text: np.ndarray) -> Tensor:
    """The states by transformers' own kernel from token ids and an attention mask alone, as a user would call it."""
    ids_1T = torch.from_numpy(text.astype(np.int64))[None].to(backbone.device)
    was_packed = backbone.packed
    backbone.use_own_kernel()
    try:
        states: Tensor = backbone.decoder(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).last_hidden_state
    finally:
        if was_packed:
            backbone.use_packed_kernel()
    return states[0].float()


def _direction(backbone: Backbone, long: np.ndarray, alone: Tensor, short: np.ndarray, expect: Expect) -> str | None:
    """Whether the last token moves the first, in a text alone and in one beside another (padded or packed)."""
    changed = long.copy()
    changed[-1] = short[0] if short[0] != long[-1] else short[1]
    moved_alone = not _equal(alone[0], _states(backbone, [changed])[0])
    before, after = (_states(backbone, [text, np.tile(short, 3)])[0] for text in (long, changed))
    moved_beside = not _equal(before, after)
    wanted = expect == "bidirectional"
    if moved_alone != wanted or moved_beside != wanted:
        where = "without padding" if moved_alone != wanted else "beside another text"
        return f"it {'stays causal' if wanted else 'is not causal'} {where}"
    return None


def _causal_layer(backbone: Backbone, text: np.ndarray) -> int | None:
    """The first layer whose output at the first token ignores the second token; None when every layer looks ahead.

    Each layer is called again on its own input with only the last position changed, so that one attention layer
    among recurrent ones cannot answer for all.
    """
    layers = _layers(backbone)
    verdicts: dict[int, bool] = {}

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, index: int) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        other = states.clone()
        other[:, -1] = states[:, 0].roll(1, dims=-1) + 1.0
        if args:
            again = layer.forward(other, *args[1:], **kwargs)
        else:
            again = layer.forward(**{**kwargs, "hidden_states": other})
        verdicts[index] = not _equal(_first(output)[0, 0], _first(again)[0, 0])

    handles = [
        layer.register_forward_hook(lambda m, a, k, o, i=i: hook(m, a, k, o, i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    try:
        _states(backbone, [text[:2]])  # two tokens: within the window of every windowed layer
    finally:
        for handle in handles:
            handle.remove()
    return next((index for index, looks_ahead in sorted(verdicts.items()) if not looks_ahead), None)


def _layers(backbone: Backbone) -> list[nn.Module]:
    """The model's blocks: the list of modules as long as the config says there are layers."""
    count = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in backbone.decoder.modules() if isinstance(module, nn.ModuleList))
    return next((list(modules) for modules in lists if len(modules) == count), [])


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _texts(backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    """Two random texts over the upper part of the vocabulary, away from the special tokens at its foot."""
    vocabulary = int(backbone.config.get_text_config().vocab_size)
    random = np.random.default_rng(20240409)
    ids = random.choice(np.arange(vocabulary // 4, vocabulary), SHORT + LONG, replace=vocabulary < 64)
    return ids[:SHORT].astype(np.int32), ids[SHORT:].astype(np.int32)


def _states(backbone: Backbone, texts: list[np.ndarray]) -> Tensor:
    return backbone.hidden_states(PackedBatch.from_tokens(TokenBatch.from_rows(texts), backbone.device)).float()


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; what attention moves is orders of magnitude more."""
    return bool((a - b).abs().max() <= 1e-6 * b.abs().max())
