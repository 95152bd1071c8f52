"""API keys: made once, kept as hashes, several valid at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rayvec.errors import UserError
from rayvec.serving import security
from rayvec.serving.security import Keys, Rates, command, new_key, parse_line


def make(path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(command, [str(path), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def owner(keys: Keys, key: str) -> str | None:
    found = keys.owner(key)
    return None if found is None else found.name


def test_the_keys_that_are_made_are_known_by_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    made = {name: make(path, name) for name in ("alice", "bob")}
    keys = Keys.load(path)
    assert {name: owner(keys, key) for name, key in made.items()} == {"alice": "alice", "bob": "bob"}
    assert path.stat().st_mode & 0o077 == 0
    assert not any(key in path.read_text() for key in made.values())


@pytest.mark.parametrize("key", ["", "rv-", "alice", "\udcff", "é", "x" * 100_000])
def test_anything_else_belongs_to_no_one(key: str) -> None:
    known = parse_line(new_key("alice")[1])
    assert known is not None
    assert Keys([known]).owner(key) is None


def test_scopes_and_rate_stand_in_the_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    reader, loader = make(path, "reader"), make(path, "loader", "--scope", "write", "--rate", "60")
    keys = Keys.load(path)
    found = [keys.owner(key) for key in (reader, loader)]
    assert [(key.scopes, key.per_minute) for key in found if key] == [({"read"}, None), ({"write"}, 60)]


def test_a_changed_file_counts_from_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "LOOK_SECONDS", 0.0)
    path = tmp_path / "keys.txt"
    alice = make(path, "alice")
    keys = Keys.load(path)
    bob = make(path, "bob")
    assert [owner(keys, key) for key in (alice, bob)] == ["alice", "bob"]
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert [owner(keys, key) for key in (alice, bob)] == [None, "bob"]
    path.write_text("broken")
    assert owner(keys, bob) == "bob"


def test_a_key_is_replaced_without_a_break(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    old, new = make(path, "alice"), make(path, "alice")
    assert [owner(Keys.load(path), key) for key in (old, new)] == ["alice", "alice"]
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert [owner(Keys.load(path), key) for key in (old, new)] == [None, "alice"]


def test_a_rate_lets_so_many_pass_a_minute_each_key_for_itself() -> None:
    keys = [parse_line(new_key(name, per_minute=3)[1]) for name in ("alice", "bob")]
    rates = Rates()
    waits = [[rates.refused(key) for _ in range(5)] for key in keys if key]
    for wait in waits:
        assert wait[:3] == [None] * 3 and all(second is not None and 1 <= second <= 60 for second in wait[3:])


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no key"), ("# nothing\n\n", "holds no key"), ("alice:123", "line 1"), ("rv-a-key-in-plain", "line 1")],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "keys.txt").write_text(content)
    with pytest.raises(UserError, match=f"{said}.*make a key with"):
        Keys.load(tmp_path / "keys.txt")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make a key with"):
        Keys.load(tmp_path / "none.txt")


def test_a_name_that_would_break_the_file_is_refused(tmp_path: Path) -> None:
    assert CliRunner().invoke(command, [str(tmp_path / "keys.txt"), "a:b\nc"]).exit_code == 2
    assert not (tmp_path / "keys.txt").exists()
