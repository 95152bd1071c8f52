"""When memory runs out: how errors say it, and what to change. Knows words and settings."""

from __future__ import annotations

from rayvec.training.stages import Contrastive, Mntp, TrainingConfig


def lacks_memory(message: str) -> bool:
    """Whether an error's text says that memory ran out: torch on a GPU, torch on a CPU, Ray's own monitor."""
    said = message.lower()
    return any(words in said for words in ("out of memory", "can't allocate memory", "low on memory", "memoryerror"))


def memory_advice(config: TrainingConfig) -> str:
    """The three settings to change when memory ran out."""
    if isinstance(config.stage, Contrastive):
        size = "set stage.gradient_cache lower" if config.stage.gradient_cache else "set stage.gradient_cache (say 16)"
    elif isinstance(config.stage, Mntp):
        size = f"set stage.accumulate to {2 * config.stage.accumulate}"
    else:
        size = f"lower batch_size (now {config.batch_size})"
    checkpointing = "use zero=zero3" if config.gradient_checkpointing else "set gradient_checkpointing=true"
    return f"out of memory: {size}, lower max_length (now {config.max_length}), or {checkpointing}"
