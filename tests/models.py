"""Small random models of every family, and a small byte-level BPE tokenizer, made on the spot for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

VOCABULARY = 512
SENTENCES = [
    "The encoder turns a text into a vector, and equal texts into equal vectors.",
    "Return the number of elements in the list, or raise ValueError when the key is missing.",
    "Retrieve documents that answer the question: how do I sort a dictionary by value?",
    "A decoder reads from left to right; an encoder sees every token from every other.",
    "今天天气很好，我们去公园散步，然后在咖啡馆里读一本关于机器学习的书。",
    "向量检索把文本变成向量，然后寻找最近的邻居；没有空格的长文本也必须按词元截断。",
    "def encode(texts: list[str]) -> numpy.ndarray: ...",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "[MASK]"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}


def _config(name: str, **values: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**values)

    return make


# Families that must become bidirectional and packable; one row each.
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _config("LlamaConfig", **GROUPED),
    "mistral": _config("MistralConfig", **GROUPED, sliding_window=4),
    "qwen2": _config("Qwen2Config", **GROUPED),
    "qwen3": _config("Qwen3Config", **GROUPED, head_dim=8),
    "gemma2": _config("Gemma2Config", **GROUPED, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0),
    "gemma3": _config("Gemma3TextConfig", **GROUPED, head_dim=8, sliding_window=4),
    "phi3": _config("Phi3Config", **GROUPED),
    "gpt_neox": _config("GPTNeoXConfig", **SIZES),
    "gpt2": _config("GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=512, vocab_size=VOCABULARY),
    "mixtral": _config("MixtralConfig", **EXPERTS, num_local_experts=4, sliding_window=None),
    "qwen3_moe": _config("Qwen3MoeConfig", **EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=16),
    "gpt_oss": _config("GptOssConfig", **EXPERTS, head_dim=8, num_local_experts=4, sliding_window=4),
    "bert": _config("BertConfig", **SIZES),
}
# Families that must be refused for bidirectional use: all or some of their layers stay causal.
REFUSED: dict[str, Callable[[], Any]] = {
    "qwen3_next": _config(
        "Qwen3NextConfig",
        **EXPERTS,
        head_dim=8,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
}


def family_config(family: str) -> Any:
    """The transformers configuration of a small model of this family."""
    return {**FAMILIES, **REFUSED, "stablelm": _config("StableLmConfig", **GROUPED)}[family]()


def save_model(family: str, path: Path, *, seed: int = 0, head: bool = True) -> Path:
    """A random model of the family as a plain transformers folder, with the tokenizer."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if head and family != "bert" else AutoModel
    model = auto.from_config(family_config(family), dtype=torch.float32)
    _spread(model)
    model.save_pretrained(path)
    tiny_tokenizer(path, bert=family == "bert")
    return path


def _spread(model: Any) -> None:
    """Random weights of a usual model are so small that attention is nearly uniform; larger ones show mistakes."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)


def tiny_llama(path: Path, *, seed: int = 0) -> Path:
    """A random Llama of 2 layers with the tokenizer: the folder of a plain transformers decoder."""
    return save_model("llama", path, seed=seed)


@cache
def _trained_tokenizer(bert: bool, bos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    form = "<s> $A </s>" if bert else "<s> $A" if bos else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def tiny_tokenizer(path: Path, *, bert: bool = False, bos: bool = True) -> Path:
    """Save a byte-level BPE tokenizer of 512 tokens; it puts <s> first, and for BERT </s> last."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained_tokenizer(bert, bos),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(path)
    return path
