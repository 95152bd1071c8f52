"""The embedded models, a small real decoder and the encoder that the recipe made of it, and the prefix test's texts.

Knows only where they lie.
"""

from __future__ import annotations

from pathlib import Path

from rayvec.errors import UserError

NAMES = ("tiny-decoder", "tiny-encoder")
TEXTS = ("prefix-triples",)


def path(name: str) -> Path:
    """The folder of an embedded model, or of texts. Raises UserError for an unknown name, listing the known models."""
    folder = Path(__file__).parent / name
    if name not in (*NAMES, *TEXTS) or not folder.is_dir():
        raise UserError(f"no embedded model {name!r}; embedded are {', '.join(NAMES)}")
    return folder
