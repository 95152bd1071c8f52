"""Recipes: functions that return a whole configuration. `tiny.mntp` is the function `mntp` in `tiny.py`.

A run is added by adding a function, the published runs of another model by a module with a `Family`; nothing is
registered by hand. Knows configurations only: imports no torch, no ray.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import TypeVar, get_type_hints

from rayvec.config import Config
from rayvec.errors import UserError

C = TypeVar("C", bound=Config)
#: Whose recipe a name without a family stands for: `ablation` is `tiny.ablation`.
USUAL = "tiny"
Recipe = Callable[[], Config]


def recipes(*config_types: type[Config]) -> dict[str, Recipe]:
    """All recipes that return one of these types of configuration (any, where none is given), by name, sorted."""
    wanted = config_types or Config
    return {name: recipe for name, recipe in sorted(_all()) if issubclass(get_type_hints(recipe)["return"], wanted)}


def get_recipe(name: str, *config_types: type[C]) -> C:
    """The configuration that a recipe gives. Raises UserError for an unknown name, listing the known ones."""
    known = recipes(*config_types)
    name = f"{USUAL}.{name}" if f"{USUAL}.{name}" in known else name
    if name in known:
        config = known[name]()
        assert isinstance(config, config_types)
        return config
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(f"no recipe {name!r}{hint}; recipes here: {', '.join(known)}")


def _all() -> Iterator[tuple[str, Recipe]]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isroutine):
            own = inspect.ismethod(function) or function.__module__ == module.__name__
            if own and not name.startswith("_"):
                yield f"{info.name}.{name}", function
