"""The mask-switch map: how much a decoder's states change, layer by layer, when the causal mask goes, untrained.

LLM2Vec, section 5.2: cosines between causal and bidirectional states, by layer and position, are high everywhere for
Mistral and low for the LLaMAs. Where they are high, the model tolerates attention both ways as it is.

Knows a Backbone and tokens. Shapes: L layers and the embeddings before them, T tokens, D hidden, P bins of positions.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rayvec import storage
from rayvec.modeling.batching_plan import plan_batches

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder
    from rayvec.modeling.tokens import TokenBatch

#: Parts of a text, from its beginning to its end, in which cosines are averaged.
BINS = 10


@dataclass(frozen=True)
class MaskMap:
    """Mean cosines between both ways of reading."""

    #: Row 0 is the embeddings', and 1 everywhere; the last is the last layer's, after its norm.
    cosines_LP: npt.NDArray[np.float64]
    #: Between any two tokens of different texts, read causally: what a cosine is worth in this model at this layer. 0
    #: where there is one text.
    unrelated_L: npt.NDArray[np.float64]
    tokens: int

    @property
    def layers(self) -> npt.NDArray[np.float64]:
        """The mean over positions, by layer."""
        return np.asarray(self.cosines_LP.mean(axis=1))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "layers": self.layers.tolist(),
            "cosines": self.cosines_LP.tolist(),
            "unrelated": self.unrelated_L.tolist(),
            "tokens": self.tokens,
        }


def mask_map(encoder: TextEncoder, batch: TokenBatch) -> MaskMap:
    """The map over the texts of a batch; the last token of each, which sees the same either way, is left out."""
    import torch

    from rayvec.modeling.batching import PackedBatch

    sums: npt.NDArray[np.float64] | None = None
    counts_P = np.zeros(BINS)
    unrelated = _Unrelated()
    with torch.inference_mode():
        for rows in plan_batches(batch.lengths, encoder.token_budget, padded=not encoder.backbone.packed):
            chosen = batch.select(rows)
            packed = PackedBatch.from_tokens(chosen, encoder.backbone.device)
            one, both = (encoder.backbone.layer_states(packed, causal=causal).float() for causal in (True, False))
            cosines_LT = torch.nn.functional.cosine_similarity(one, both, dim=-1).double().cpu().numpy()
            bins_T, inner_T = _bins(chosen.lengths)
            sums = np.zeros((len(cosines_LT), BINS)) if sums is None else sums
            for place in range(BINS):
                sums[:, place] += cosines_LT[:, inner_T & (bins_T == place)].sum(axis=1)
            counts_P += np.bincount(bins_T[inner_T], minlength=BINS)
            unrelated.add(one, chosen.lengths)
    assert sums is not None, "a batch of at least one text"
    cosines_LP = sums / np.maximum(counts_P, 1)
    return MaskMap(cosines_LP[:, counts_P > 0], unrelated.mean_L, int(counts_P.sum()))


def _bins(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Each token's part of its text, and whether it is not the last one."""
    place_T = np.concatenate([np.arange(n) for n in lengths])
    length_T = np.repeat(lengths, lengths)
    return place_T * BINS // length_T, place_T < length_T - 1


class _Unrelated:
    """The mean cosine of each text's middle token with the next text's, by layer, whatever batches the texts are in."""

    def __init__(self) -> None:
        self._sums_L: Any = 0.0
        self._pairs = 0
        self._last: Any = None

    def add(self, states_LTD: Any, lengths: npt.NDArray[np.int64]) -> None:
        """Take the states of the next texts; the first of them is compared with the last of those before."""
        import torch

        middles = torch.from_numpy(np.cumsum(lengths) - lengths + lengths // 2).to(states_LTD.device)
        found = states_LTD[:, middles]
        if self._last is not None:
            found = torch.cat([self._last, found], dim=1)
        self._last = found[:, -1:]
        cosines_LN = torch.nn.functional.cosine_similarity(found[:, :-1], found[:, 1:], dim=-1)
        self._sums_L = self._sums_L + cosines_LN.double().sum(dim=1).cpu().numpy()
        self._pairs += cosines_LN.shape[1]

    @property
    def mean_L(self) -> npt.NDArray[np.float64]:
        """By layer; 0 where there is one text."""
        return np.asarray(self._sums_L / max(1, self._pairs))


def draw_map(found: MaskMap, title: str, uri: str) -> None:
    """Write a PNG: the map by layer and part of the text, and beside it the mean by layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(found.cosines_LP, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=left, label="cosine, causal · both ways")
    left.set_xlabel("part of the text, from beginning to end")
    left.set_ylabel("layer (0: embeddings)")
    layers = np.arange(len(found.layers))
    right.plot(found.layers, layers, marker="o", color="#0072B2", label="same token, both ways")
    right.plot(found.unrelated_L, layers, marker="s", color="#999999", label="tokens of different texts")
    right.set_xlim(min(0.0, float(found.unrelated_L.min())) - 0.02, 1.03)
    right.set_xlabel("mean cosine")
    for axes in (left, right):
        axes.set_yticks(layers if len(layers) <= 20 else layers[:: max(1, len(layers) // 12)])
    right.grid(alpha=0.25)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="center")
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())
