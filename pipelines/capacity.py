"""Capacity: what it takes to embed, index and serve so many documents, told before any of it is bought.

Speed is arithmetic over a rate: of a GPU, the vendor's dense bf16 figure times the share of it that is used; of a CPU,
what a matrix product reaches on this machine now. Sizes are those that the index's own estimate gives. Knows no
cluster: it asks nothing of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipelines.report import Report
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.schema import VectorType

Device = Literal["H200", "H100", "A100", "L40S", "L4", "A10G", "cpu"]

#: Dense bf16 multiply-adds of the vendors' data sheets, in TFLOP/s, and what of it the encoder uses. The best published
#: figures for 7B to 8B encoders are .45 to .5 of the sheet at lengths of a hundred tokens and more; measure yours.
TERAFLOPS: dict[str, float] = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70}
UTILIZATION = 0.45
#: On a CPU encoders reach .8 (the embedded one, 6.5 M weights) to .92 (19 M) of a float32 matrix product's rate; the
#: lower is taken (benchmarks/embed_pipeline.py, encoding_cpu.py).
UTILIZATION_CPU = 0.78
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary": 1 / 8}
#: Bytes of English text a token, and what zstd leaves of it in a part.
TEXT_BYTES_A_TOKEN = 4.5
COMPRESSED = 0.45
#: What of a machine may be filled with an index, and of a core with queries, so that there is room to breathe.
FILLED = 0.7
QUERY_TOKENS = 20
#: How far off the plan may be, as measured (benchmarks/RESULTS.md; pinned by tests/pipelines/test_capacity.py).
ERRORS = {
    "cpu": "hours within a half on a machine of its own (8,026 tokens/s a core foretold, 8,383 measured); two cores "
    "under a load of 10 to 30 took 5 times as long",
    "gpu": "not measured on a GPU; give tokens_per_second once you have",
    "given": "that of the rate that is given",
    "index": "sizes within a tenth (arXiv: 123.351 MB foretold and written), build and milliseconds a query within a "
    "factor of two (12 core-seconds foretold, 19 used; 0.30 ms foretold, 0.44 measured)",
    "serve": "encoding and searching within a factor of two (10 ms foretold, 15 measured); HTTP and the calls between "
    "parts add 3 to 9 ms to a request",
}


class CapacityConfig(Config):
    """How much, with what, how fast and at what price."""

    documents: PositiveInt = 1_000_000
    #: Tokens of a document, in the mean, as far as the encoder reads it.
    tokens: PositiveFloat = 130.0
    #: The encoder: "tiny", "hash", a folder, or the name of a published model whose shape is known here.
    encoder: str = "meta-llama/Meta-Llama-3-8B-Instruct"
    #: How vectors are stored by the embed job, and how many dimensions are indexed (all by default).
    dtype: VectorType = "float16"
    dimensions: PositiveInt | None = None
    keep_text: bool = True
    #: What encodes, how many of them, and the price of one of them for an hour.
    device: Device = "H200"
    workers: PositiveInt = 8
    price_per_hour: float = Field(0.0, ge=0)
    #: Tokens a second of one worker, where you have measured them; else they are estimated.
    tokens_per_second: PositiveFloat | None = None
    #: "auto" or a factory string, and what the index may keep in memory in all; as in the index job.
    factory: str = "auto"
    memory_budget: str | int | None = None
    recall_target: float = Field(0.95, gt=0, le=1)
    #: The machines that build the index and serve it.
    machine_memory: str | int = "256GB"
    machine_cores: PositiveInt = 32
    #: Searches a second to be answered.
    queries_per_second: PositiveFloat = 100.0


@dataclass(frozen=True)
class Encoder:
    """Multiply-adds' worth of an encoder: floating point operations a token at a length, and its dimensions."""

    weights: int
    attention: int
    dim: int

    def operations(self, length: float) -> float:
        """Of one token of a text of so many: two a weight, and four a token attended to, of each layer's width."""
        return 2.0 * self.weights + 4.0 * length * self.attention


def capacity(config: CapacityConfig) -> Report:
    """Estimate hours, price, disk, memory, shards, machines and replicas. Raises UserError."""
    encoder = _encoder(config.encoder)
    rate, how = _tokens_per_second(config, encoder, config.tokens)
    seconds = config.documents * config.tokens / (rate * config.workers)
    index = _index(config, encoder.dim)
    encode = {
        "tokens": round(config.documents * config.tokens),
        "tokens/s": round(rate * config.workers),
        "rate": how,
        "hours": round(seconds / 3600, 2),
        "price": round(seconds / 3600 * config.workers * config.price_per_hour, 2) or None,
        "error": ERRORS["given" if config.tokens_per_second else "cpu" if config.device == "cpu" else "gpu"],
    }
    parts = {
        "encode": encode,
        "disk": _disk(config, encoder.dim),
        "index": index,
        "serve": _serve(config, encoder, index),
    }
    return {f"{part}: {name}": value for part, values in parts.items() for name, value in values.items()}


def _encoder(reference: str) -> Encoder:
    if reference.partition(":")[0] == "hash":
        from rayvec.modeling.hash_encoder import HashEncoder

        return Encoder(0, 0, HashEncoder.parse(reference).dim)
    from rayvec.training.shapes import find_shape

    shape = find_shape(reference)
    if shape is None:
        raise UserError(f"encoder = {reference}: its shape is not known here; give a folder with its config.json")
    return _of_shape(shape.config)


def _of_shape(config: Any) -> Encoder:
    """Counted on the meta device: shapes without memory."""
    import torch
    from transformers import AutoModel

    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModel.from_config(text)
    embedded = model.get_input_embeddings().weight.numel()
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedded
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Encoder(weights, text.num_hidden_layers * text.num_attention_heads * head, text.hidden_size)


def _tokens_per_second(config: CapacityConfig, encoder: Encoder, length: float) -> tuple[float, str]:
    """Of one worker, and where the figure is from."""
    if config.tokens_per_second is not None:
        return config.tokens_per_second, "given"
    operations = encoder.operations(length)
    if not operations:
        raise UserError("the hash encoder has no weights to count; give --set tokens_per_second=… as you measured it")
    if config.device != "cpu":
        sheet = TERAFLOPS[config.device]
        return UTILIZATION * sheet * 1e12 / operations, f"{UTILIZATION:.0%} of {sheet:g} TFLOP/s"
    from rayvec.indexing.estimate import measure_rate

    measured = measure_rate()
    told = f"{UTILIZATION_CPU:.0%} of {measured / 1e9:.0f} GFLOP/s, measured on one core of this machine"
    return UTILIZATION_CPU * measured / operations, told


def _disk(config: CapacityConfig, dim: int) -> Report:
    from rayvec.indexing.spec import human_bytes

    vectors = config.documents * dim * BYTES[config.dtype]
    text = config.documents * config.tokens * TEXT_BYTES_A_TOKEN * COMPRESSED if config.keep_text else 0.0
    return {"vectors": human_bytes(vectors), "text": human_bytes(text)}


def _index(config: CapacityConfig, dim: int) -> Report:
    from rayvec.indexing.build import SHARD_BYTES
    from rayvec.indexing.estimate import estimate, measure_rate
    from rayvec.indexing.spec import choose, expected_ms, human_bytes, parse_bytes

    kept = config.dimensions or dim
    if kept > dim:
        raise UserError(f"dimensions = {kept}: the encoder's vectors have {dim}; ask for fewer")
    budget = None if config.memory_budget is None else parse_bytes(config.memory_budget)
    spec = choose(config.factory, config.documents, kept, memory_budget=budget, recall_target=config.recall_target)
    found = estimate(spec, config.documents, kept, measure_rate())
    machines = math.ceil(found.resident / (FILLED * parse_bytes(config.machine_memory)))
    assert found.cpu_seconds is not None, "a rate was given"
    reduce = 2.0 * config.documents * dim * (dim / 2 + kept) / measure_rate() if kept < dim else 0.0
    hours = (found.cpu_seconds + reduce) / 3600
    return {
        "factory": spec.factory,
        "why": spec.why,
        "dimensions": kept,
        "bytes": human_bytes(found.bytes),
        "memory": human_bytes(found.resident),
        "bytes_a_vector": round(found.resident / config.documents, 1),
        "shards": math.ceil(found.bytes / SHARD_BYTES),
        "machines": machines,
        "build_core_hours": round(hours, 4),
        "build_hours": round(hours / (machines * config.machine_cores), 2),
        "milliseconds_a_query": round(expected_ms(spec, config.documents, kept), 3),
        "error": ERRORS["index"],
    }


def _serve(config: CapacityConfig, encoder: Encoder, index: Report) -> Report:
    cores = config.queries_per_second * index["milliseconds_a_query"] / 1000 / FILLED
    copies = max(1, math.ceil(cores / (index["machines"] * config.machine_cores)))
    found: Report = {"search_cores": round(cores, 2), "index_copies": copies, "machines": copies * index["machines"]}
    if encoder.weights or config.tokens_per_second:
        rate, _ = _tokens_per_second(config, encoder, QUERY_TOKENS)
        found["encoder_replicas"] = math.ceil(config.queries_per_second * QUERY_TOKENS / (FILLED * rate))
    return {**found, "error": ERRORS["serve"]}
