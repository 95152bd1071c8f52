"""Gemma-3-1b-it: the published stages, with the LLaMAs' numbers. Texts are read inside its chat format.

The largest Gemma 3 that reads text alone; not among the paper's models, so 20 % masking, which the paper chose for all
but Mistral. Its sliding windows stay: they reach 512 tokens to both sides, so no text of training ever meets their
edge, and a longer one is read as the base was trained to. All 1152 dimensions are indexed.
"""

from __future__ import annotations

from pipelines.published import Family

FAMILY = Family("google/gemma-3-1b-it", dimensions=None)
mntp, simcse, supervised, embed, index, update, compact, advise, line = FAMILY.recipes()
