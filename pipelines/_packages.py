"""Which package is a docstring from? A labelled task that every installation has: pydocs with their packages."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayvec.evaluation.local_sets import Labelled

#: The packages with most held-out documents; a class needs enough texts to learn from and to be asked about.
PACKAGES = 20
#: Held-out documents of each at most, so that no package outweighs the others.
TEXTS_A_PACKAGE = 100
LEARNED_A_PACKAGE = 200


def by_package(cache: str) -> tuple[Labelled, Labelled]:
    """Docstrings to learn from, and held-out ones to be asked about, with the package of each.

    Only the text is given: a docstring's title names its package. Raises UserError when there are too few packages.
    """
    from rayvec.data.pairs import is_held_out
    from rayvec.data.sources import SourceConfig, open_source
    from rayvec.errors import UserError
    from rayvec.evaluation.local_sets import Labelled

    source = open_source(SourceConfig(kind="pydocs", payload=("package",)), cache=cache)
    parts: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    seen: set[str] = set()
    for unit in source.units(1 << 16):
        table = source.read(unit).table
        columns = (table[name].to_pylist() for name in ("id", "text", "package"))
        for id_, text, package in zip(*columns, strict=True):
            if text not in seen:
                seen.add(text)
                parts[is_held_out(id_)].setdefault(package, []).append(text)
    train, test = parts
    counts = Counter({name: len(texts) for name, texts in test.items() if name in train})
    chosen = [name for name, count in counts.most_common(PACKAGES) if count > 1]
    if len(chosen) < 2:
        raise UserError("pydocs: fewer than two packages with held-out docstrings; use a set of your own")

    def labelled(part: dict[str, list[str]], limit: int) -> Labelled:
        rows = [(text, name) for name in sorted(chosen) for text in _spread(part[name], limit)]
        return Labelled([text for text, _ in rows], [name for _, name in rows])

    return labelled(train, LEARNED_A_PACKAGE), labelled(test, TEXTS_A_PACKAGE)


def _spread(texts: list[str], limit: int) -> list[str]:
    return [texts[i * len(texts) // limit] for i in range(limit)] if len(texts) > limit else texts
