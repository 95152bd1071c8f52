"""Pairs out of docstrings, and what is held out."""

from __future__ import annotations

import pyarrow as pa

from rayvec.data.pairs import docstring_pairs, is_held_out, split_docstring

REST = "The second part is put after the first one, with exactly one separator between."


def test_a_summary_over_two_lines_becomes_one() -> None:
    assert split_docstring(f"Join two paths\n  into one.\n\n{REST}") == ("Join two paths into one.", REST)


def test_a_docstring_without_a_rest_is_no_pair() -> None:
    assert split_docstring("Join two paths into one.\n\nShort.") is None


def test_about_a_twentieth_is_held_out() -> None:
    held = sum(is_held_out(f"package.module.f{i}") for i in range(20_000))
    assert 0.045 < held / 20_000 < 0.055


def test_training_and_held_out_pairs_are_disjoint_and_complete() -> None:
    n = 200
    ids = [f"p.f{i}" for i in range(n)]
    table = pa.table({"id": ids, "text": [f"Summary number {i} of many.\n\n{REST}" for i in range(n)]})
    training = {pair.id for pair in docstring_pairs(table, held_out=False)}
    held_out = {pair.id for pair in docstring_pairs(table, held_out=True)}
    assert training.isdisjoint(held_out)
    assert training | held_out == set(ids)


def test_a_query_asked_twice_is_kept_once() -> None:
    # Two documents with the same summary cannot be told apart by it: neither a fair question nor a fair negative.
    ids = [f"a.f{i}" for i in range(40)]
    training = [name for name in ids if not is_held_out(name)][:2]
    table = pa.table({"id": training, "text": [f"Join two paths here.\n\n{REST}"] * 2})
    assert [pair.id for pair in docstring_pairs(table, held_out=False)] == training[:1]
