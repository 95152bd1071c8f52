"""Mistral-7B-Instruct-v0.2: the published stages. Texts are read inside its chat format, [INST] … [/INST].

The published run masks 80 % of the tokens, all with the mask token, and saw full attention: sliding windows, where a
version has them, are opened.
"""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("mistralai/Mistral-7B-Instruct-v0.2", probability=0.8, masking="all", attention_window="full")
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
