"""Llama-3.1-8B-Instruct: the published stages. Texts are read inside its chat format."""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("meta-llama/Llama-3.1-8B-Instruct")
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
