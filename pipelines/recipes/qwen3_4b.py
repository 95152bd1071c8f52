"""Qwen3-4B: the published stages, with the numbers of qwen3_0_6b and for its reasons."""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("Qwen/Qwen3-4B")
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
