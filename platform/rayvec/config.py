"""Configuration: one frozen, validated, nested value a run. Loads and saves YAML, takes dotted overrides.

Knows nothing of what is configured: each package defines its own `Config` subclasses next to the code that reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rayvec import storage
from rayvec.errors import UserError


class Config(BaseModel):
    """Base of every configuration: immutable, refuses unknown keys, validates defaults too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values. Raises UserError with one line that names the key, the value and what is allowed."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(_explain(error, cls)) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a whole configuration from a YAML file, at a path or URI."""
        return cls.parse(read_yaml(path))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again (`model_copy` does not validate)."""
        return type(self).parse({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def updated(self, *layers: Mapping[str, Any]) -> Self:
        """A copy with nested mappings laid over it, the last one winning; validated once, at the end."""
        return type(self).parse(merged(self.model_dump(mode="json"), *layers))

    def to_yaml(self) -> str:
        """The whole configuration as YAML, in the order in which the fields are declared."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON form."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping at a path or URI.

    Raises UserError when the file is missing, is not YAML or is not a mapping, and StorageError.
    """
    try:
        values = yaml.safe_load(storage.read_bytes(path).decode())
    except FileNotFoundError:
        raise UserError(f"configuration file {path} does not exist; give the path or URI of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file {path} cannot be read ({error}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"configuration file {path} is not valid YAML: {detail}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"configuration file {path} holds a {type(values).__name__}; write `key: value` lines")
    return values


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `a.b=value` assignments into a nested mapping.

    >>> parse_overrides(["source.path=data/*.jsonl", "train.steps=20", "systems=[dense, lexical]"])
    {'source': {'path': 'data/*.jsonl'}, 'train': {'steps': 20}, 'systems': ['dense', 'lexical']}
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise UserError(f"--set {assignment!r} is not an assignment; write --set key=value or --set a.b=value")
        layer: dict[str, Any] = {parts[-1]: _value(text)}
        for part in reversed(parts[:-1]):
            layer = {part: layer}
        result = _merge(result, layer)
    return result


def _value(text: str) -> Any:
    """What a text on a command line stands for.

    Numbers, true, false and null are themselves; what begins as a list, a mapping or quoted text is read as YAML. All
    else is the text, to the letter: a prefix ends with a space, a sentence holds ` #` or `: `, and is no YAML for that.
    """
    begin = text.lstrip()[:1]
    try:
        if begin and begin in "[{\"'":
            return yaml.safe_load(text)
        return json.loads(text.lower() if text.lower() in _WORDS else text, parse_constant=_no_number)
    except (ValueError, yaml.YAMLError):
        return text


_WORDS = ("true", "false", "null")


def _no_number(name: str) -> Any:
    raise ValueError(name)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other, the last one winning. An empty one takes away what was there.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}), merged({"a": {"b": 1}}, {"a": {}})
    ({'a': {'b': 3, 'c': 2}}, {'a': {}})
    """
    result: dict[str, Any] = {}
    for layer in layers:
        result = _merge(result, layer)
    return result


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) and value else value
    return merged


def _explain(error: ValidationError, config: type[BaseModel]) -> str:
    """One line for the first thing that is wrong: the key, the value, and what is allowed."""
    first = error.errors(include_url=False)[0]
    keys, models = _lead(config, first["loc"])
    key = ".".join(keys)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known keys here: {', '.join(models[0].model_fields)}{more}"
    if first["type"] == "missing":
        return f"{key} is required; give it with --set {key}=…{more}"
    message = first["msg"].removeprefix("Value error, ")
    told = f"{message[0].lower()}{message[1:]}{more}"
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # its keys do not fit each other
        return f"{key}: {told}" if key else told
    return f"{key} = {first['input']!r}: {told}"


def _lead(config: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys that lead to a location, without the tags that pydantic puts after unions, and the models around it."""
    keys, models = [], [config]
    for part in location:
        tagged = [model for model in models if len(models) > 1 and _tag_of(model) == part]
        if tagged:
            models = tagged
            continue
        keys.append(str(part))
        field = models[0].model_fields.get(str(part))
        models = (field and _models_of(field.annotation)) or models
    return keys, models


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models named in an annotation such as `A | B | None` or `list[A]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_of(argument)]


def _tag_of(model: type[BaseModel]) -> Any:
    """The default of a discriminated union's tag field, named `kind` throughout rayvec."""
    field = model.model_fields.get("kind")
    return None if field is None else field.default
