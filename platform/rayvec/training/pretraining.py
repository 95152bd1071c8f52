"""Making a small decoder from nothing: tokenizer, token stream, embeddings that start from co-occurrence, causal loss.

The recipe of the embedded model (`tiny.pretrain`). Knows texts and one process; knows no Ray and no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from rayvec.config import Config
from rayvec.training.loop import Metrics

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

#: Words with the space before them, CamelCase cut at its humps, single digits, runs of signs, runs of white space.
PRETOKENIZER = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class DecoderConfig(Config):
    """Shape of a Llama made from nothing."""

    vocab_size: int = Field(8192, ge=512, le=65535)
    hidden_size: int = Field(256, ge=32)
    intermediate_size: int = Field(704, ge=32)
    layers: int = Field(6, ge=1)
    heads: int = Field(8, ge=1)
    key_value_heads: int = Field(4, ge=1)
    context: int = Field(512, ge=32)
    #: Start the token embeddings from factorised co-occurrence counts; saves a small run its first million tokens.
    cooccurrence_window: int = Field(8, ge=0)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with BOS put before every text; any string round-trips."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def write_token_stream(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], path: Path, chunk: int = 1000) -> int:
    """Append BOS + text + EOS of every text to a flat uint16 file, ready to be memory-mapped; returns the tokens."""
    backend: Any = tokenizer
    end = np.uint16(backend.eos_token_id)
    written = 0
    with path.open("wb") as stream:
        for group in _groups(texts, chunk):
            for encoding in backend.backend_tokenizer.encode_batch(group):
                ids = np.append(np.asarray(encoding.ids, dtype=np.uint16), end)
                stream.write(ids.tobytes())
                written += len(ids)
    return written


def _groups(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def cooccurrence_embeddings(tokens: np.ndarray, vocab_size: int, dim: int, window: int, seed: int = 0) -> np.ndarray:
    """Token vectors [vocab_size, dim] from factorised co-occurrence, with a standard deviation of 0.02.

    tokens: flat ids. Counts within `window` tokens are weighted by 1/distance and turned into shifted positive
    pointwise mutual information with context smoothing 0.75 (Levy and Goldberg 2014; Levy et al. 2015, section 3),
    then cut to `dim` by a randomised SVD, singular values to the power 0.5.
    """
    import torch

    counts = np.zeros(vocab_size * vocab_size, dtype=np.float64)
    ids = np.asarray(tokens, dtype=np.int64)
    for distance in range(1, window + 1):
        for start in range(0, len(ids) - distance, 1 << 22):
            stop = min(start + (1 << 22), len(ids) - distance)
            keys = ids[start:stop] * vocab_size + ids[start + distance : stop + distance]
            counts += np.bincount(keys, minlength=counts.size) / distance
    joint = counts.reshape(vocab_size, vocab_size)
    joint += joint.T.copy()
    row = joint.sum(axis=1)
    context = row**0.75 / (row**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(joint / np.outer(row, context))
    information = np.nan_to_num(np.maximum(information, 0.0), posinf=0.0).astype(np.float32)
    torch.manual_seed(seed)
    u, s, _ = torch.svd_lowrank(torch.from_numpy(information), q=dim, niter=4)
    vectors = (u * s.sqrt()).numpy()
    vectors -= vectors.mean(axis=0)
    return (vectors * (0.02 / vectors.std())).astype(np.float32)


def build_decoder(config: DecoderConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A Llama with random weights and tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@dataclass
class TokenRows:
    """A batch of rows cut out of a token stream."""

    input_ids_BT: torch.Tensor
    tokens: int
    document_ids: Sequence[str]


@dataclass
class StreamBatches:
    """Rows at random places of a memory-mapped token stream; a pure function of (seed, step)."""

    stream: np.ndarray
    rows: int
    context: int
    seed: int

    def __call__(self, step: int) -> TokenRows:
        """The batch of a step."""
        import torch

        generator = np.random.default_rng((self.seed, step))
        starts = generator.integers(0, len(self.stream) - self.context, size=self.rows)
        rows = np.stack([self.stream[start : start + self.context] for start in starts]).astype(np.int64)
        return TokenRows(torch.from_numpy(rows), rows.size, [f"stream[{start}]" for start in starts])


def causal_loss(model: PreTrainedModel, batch: TokenRows) -> tuple[torch.Tensor, Metrics]:
    """Mean cross-entropy of each next token, in nats."""
    import torch

    logits_BTV = model(input_ids=batch.input_ids_BT, use_cache=False).logits[:, :-1]
    targets = batch.input_ids_BT[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets), {}
