"""Qwen3-0.6B: the published stages, with the LLaMAs' numbers.

Not among the paper's models. 20 % masking is what the paper chose for all but Mistral, whose states hardly change when
the causal mask goes. No chat format: Qwen3-Embedding, made of the same models, has none. All 1024 dimensions are
indexed.
"""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("Qwen/Qwen3-0.6B", dimensions=None)
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
