"""The embedded models: a small real decoder and the encoder that the recipe made of it. Knows only where they lie."""

from __future__ import annotations

from pathlib import Path

from rayvec.errors import UserError

NAMES = ("tiny-decoder", "tiny-encoder")


def path(name: str) -> Path:
    """The folder of an embedded model. Raises UserError for an unknown name, listing the known ones."""
    folder = Path(__file__).parent / name
    if name not in NAMES or not folder.is_dir():
        raise UserError(f"no embedded model {name!r}; embedded are {', '.join(NAMES)}")
    return folder
