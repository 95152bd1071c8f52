"""Configuration: frozen, validated, overridable, with errors that name the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from rayvec import storage
from rayvec.config import Config, parse_overrides, read_yaml
from rayvec.errors import UserError


class Inner(Config):
    kind: Literal["inner"] = "inner"
    size: int = Field(default=3, ge=1)


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()


class Other(Config):
    kind: Literal["other"] = "other"
    name: str = "x"

    @model_validator(mode="after")
    def _short(self) -> Other:
        if len(self.name) > 1:
            raise ValueError("name is too much")
        return self


Part = Annotated[Inner | Other, Field(discriminator="kind")]


class Whole(Config):
    part: Part
    parts: tuple[Part, ...] = ()


def test_overrides_reach_nested_values() -> None:
    assert Outer().updated(parse_overrides(["inner.size=7"])).inner.size == 7


def test_the_last_override_wins() -> None:
    assert parse_overrides(["a=1", "a=2"]) == {"a": 2}


def test_an_override_without_equals_sign_names_the_form() -> None:
    with pytest.raises(UserError, match="--set key=value"):
        parse_overrides(["a"])


TEXTS = ["data/*.jsonl", "s3://bucket/key", "a: b", "query: ", " C# and #1", "12:30", "2026-01-31", "010", "&x", "NaN"]


@pytest.mark.parametrize("text", [*TEXTS, "[unclosed", ""])
def test_any_text_can_be_a_value(text: str) -> None:
    assert parse_overrides([f"path={text}"])["path"] == text


VALUES = {
    "3": 3,
    "1e-4": 1e-4,
    "-2.5": -2.5,
    "null": None,
    "True": True,
    "[1, a b]": [1, "a b"],
    "{a: 1}": {"a": 1},
    "'3'": "3",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_what_is_no_text_is_read_as_what_it_is(text: str, value: object) -> None:
    assert parse_overrides([f"key={text}"])["key"] == value


def test_a_mapping_can_be_emptied() -> None:
    class Prompts(Config):
        instructions: dict[str, str] = Field(default={"query": "Search"})

    assert Prompts().updated(parse_overrides(["instructions={}"])).instructions == {}


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown key 'inner\.sise'; known keys here: kind, size"):
        Outer().updated({"inner": {"sise": 1}})


def test_a_wrong_value_names_key_value_and_bound() -> None:
    with pytest.raises(UserError, match=r"inner\.size = 0: input should be greater than or equal to 1"):
        Outer().updated({"inner": {"size": 0}})


def test_keys_are_told_as_they_are_set() -> None:
    """Without the tags of unions, which lead nowhere with --set."""
    for values, key in (({"kind": "other", "sise": 1}, "part.sise"), ({"kind": "inner", "size": 0}, "part.size")):
        with pytest.raises(UserError, match=f"^(unknown key ')?{key}('; known keys here: kind, name| = 0: input)"):
            Whole.parse({"part": values})
    with pytest.raises(UserError, match=r"^unknown key 'parts\.0\.sise'; known keys here: kind, size"):
        Whole.parse({"part": {"kind": "other"}, "parts": [{"kind": "inner", "sise": 1}]})


def test_values_that_do_not_go_together_are_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^part: name is too much$"):
        Whole.parse({"part": {"kind": "other", "name": "long"}})
    with pytest.raises(UserError, match=r"^name is too much$"):
        Other().replace(name="long")


def test_a_missing_value_says_how_to_give_it() -> None:
    class Needs(Config):
        path: str

    with pytest.raises(UserError, match="path is required; give it with --set path="):
        Needs.parse({})


def test_replace_validates() -> None:
    with pytest.raises(UserError):
        Inner().replace(size=0)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = Outer(name="größer", inner=Inner(size=9))
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Outer.from_yaml(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(("content", "message"), [("- a", "write `key: value` lines"), ("{", "not valid YAML")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_a_file_in_a_store_is_read_by_its_uri() -> None:
    storage.write_bytes("memory://line/serve.yaml", Outer(name="größer").to_yaml().encode())
    assert Outer.from_yaml("memory://line/serve.yaml") == Outer(name="größer")
    with pytest.raises(UserError, match=r"memory://line/none\.yaml does not exist"):
        read_yaml("memory://line/none.yaml")


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")


def test_the_digest_follows_the_values() -> None:
    assert Outer().digest() == Outer().digest() != Outer(name="y").digest()
