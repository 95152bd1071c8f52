"""API keys: made once, kept as hashes, several valid at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.serving.security import Keys, _main, new_key


def test_the_keys_that_are_made_are_known_by_their_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    made = {}
    for name in ("alice", "bob"):
        assert _main([str(path), name]) == 0
        made[name] = capsys.readouterr().out.strip()
    keys = Keys.load(path)
    assert {name: keys.owner(key) for name, key in made.items()} == {"alice": "alice", "bob": "bob"}
    assert path.stat().st_mode & 0o077 == 0
    assert not any(key in path.read_text() for key in made.values())


@pytest.mark.parametrize("key", ["", "rv-", "alice", "\udcff", "é", "x" * 100_000])
def test_anything_else_belongs_to_no_one(key: str) -> None:
    _, line = new_key("alice")
    assert Keys(dict([line.strip().split(":")])).owner(key) is None


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
    assert _main([str(tmp_path / "keys.txt"), "a:b\nc"]) == 2
    assert not (tmp_path / "keys.txt").exists()
