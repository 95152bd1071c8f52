"""Shapes: the transformers configuration of a model that may not be on this machine. Asks no network.

Looked up in this order: an embedded model, a folder, the Hugging Face cache, the published configurations in
`assets/shapes` (`<organisation>--<name>.json`, the fields that decide sizes, as published). Loads no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rayvec import assets, uris
from rayvec.modeling import references

PUBLISHED = Path(assets.__file__).parent / "shapes"


class Shape(NamedTuple):
    """A configuration, whose it is, and where it was found."""

    name: str
    config: Any
    source: str


def find_shape(reference: str) -> Shape | None:
    """The shape of a model or encoder folder, or None where it is not known here."""
    from rayvec.modeling.backbone import read_config

    found = _file_of(reference)
    return None if found is None else Shape(reference, read_config(found[0]), found[1])


def _file_of(reference: str) -> tuple[Path, str] | None:
    """A config.json or a folder with one, and what it is."""
    if not reference:
        return None
    name = references.canonical(reference)
    if name.startswith(references.EMBEDDED):
        return references.resolve(name), "embedded"
    if not uris.is_local(reference):
        return None
    folder = uris.local_path(reference)
    if folder.is_dir():
        return (folder, "its folder") if (folder / "config.json").is_file() else None
    if not references.HUB_ID.fullmatch(reference):
        return None
    return _cached(reference) or _published(reference)


def _cached(name: str) -> tuple[Path, str] | None:
    from huggingface_hub import try_to_load_from_cache

    repository, revision = references.hub_parts(name)
    path = try_to_load_from_cache(repository, "config.json", revision=revision)
    return (Path(path), "the Hugging Face cache") if isinstance(path, str) else None


def _published(name: str) -> tuple[Path, str] | None:
    path = PUBLISHED / f"{references.hub_parts(name)[0].replace('/', '--')}.json"
    return (path, "as published") if path.is_file() else None
