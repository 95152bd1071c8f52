"""SmolLM3-3B: the published stages, with the LLaMAs' numbers.

Not among the paper's models; its layers are a Llama's (every fourth without rotary positions), so the LLaMAs' 20 %
masking is taken. No chat format: its own opens with a system text that holds the day's date.
"""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("HuggingFaceTB/SmolLM3-3B")
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
