"""Sheared-LLaMA-1.3B: the published stages; SimCSE in batches of 32, as the paper has it."""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("princeton-nlp/Sheared-LLaMA-1.3B", simcse_batch=32)
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
