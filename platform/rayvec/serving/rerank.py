"""A second look at the best hits: a reranker reads query and text together, and gives each pair a score.

Named by whoever starts the service, never by a request: `cross-encoder:NAME_OR_FOLDER` for a model of
sentence-transformers, or `package.module:name` for a callable of one's own. Knows texts. Knows no index, no route.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from rayvec.errors import UserError

CROSS_ENCODER = "cross-encoder:"


class Reranker(Protocol):
    """A callable that scores texts for a query; higher is better, scores need no common scale with the search's."""

    def __call__(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One score a text."""


def load_reranker(reference: str) -> Reranker:
    """The reranker of that name. Raises UserError when there is none."""
    if reference.startswith(CROSS_ENCODER):
        return _cross_encoder(reference.removeprefix(CROSS_ENCODER))
    module, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"reranker = {reference!r} is not there ({error}); write package.module:name or {CROSS_ENCODER}NAME"
        ) from None
    if not callable(found):
        raise UserError(f"reranker = {reference!r} cannot be called; name a function of (query, texts)")
    reranker: Reranker = found() if isinstance(found, type) else found
    return reranker


def _cross_encoder(name: str) -> Reranker:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise UserError("a cross-encoder needs sentence-transformers: pip install 'rayvec[eval]'") from None
    try:
        model = CrossEncoder(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"reranker = {CROSS_ENCODER}{name} cannot be loaded ({str(error).splitlines()[0]})") from None

    def score(query: str, texts: Sequence[str]) -> Sequence[float]:
        scores: Sequence[float] = model.predict([(query, text) for text in texts], show_progress_bar=False).tolist()
        return scores

    return score
