"""Llama-2-7B-chat: the published stages. Texts are read inside its chat format, [INST] … [/INST]."""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("meta-llama/Llama-2-7b-chat-hf")
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
