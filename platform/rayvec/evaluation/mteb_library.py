"""mteb, where it is installed: imported when it is asked for, never before. Knows nothing else."""

from __future__ import annotations

import importlib
from typing import Any

from rayvec.errors import UserError


def mteb(module: str = "") -> Any:
    """mteb, or a module of it. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(f"mteb.{module}" if module else "mteb")
    except ModuleNotFoundError as error:
        if error.name is not None and not error.name.startswith("mteb"):
            raise
        raise UserError("MTEB's tasks need mteb, which is not installed; run pip install 'rayvec[mteb]'") from None
