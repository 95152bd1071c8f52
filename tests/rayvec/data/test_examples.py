"""The example store: what is written is read back, and a torn one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.data.examples import ExampleStore, ExampleWriter
from rayvec.errors import VerificationError
from rayvec.modeling.tokens import TokenBatch


def _write(folder: Path) -> None:
    with ExampleWriter(folder, width=2) as writer:
        writer.begin_set("first", weight=2.0)
        queries = TokenBatch.from_rows([[1, 5, 6], [1, 7]], pool=[(1, 3), (1, 2)])
        writer.add(["a", "b"], [queries, TokenBatch.from_rows([[8], [9, 9]])])
        writer.begin_set("second")
        writer.add(["c"], [TokenBatch.from_rows([[3, 3]]), TokenBatch.from_rows([[4, 4, 4]])])


def test_round_trip(tmp_path: Path) -> None:
    _write(tmp_path)
    store = ExampleStore(tmp_path)
    assert (len(store), store.width, store.tokens) == (3, 2, 13)
    assert [(s.name, s.start, s.stop, s.weight) for s in store.sets] == [("first", 0, 2, 2.0), ("second", 2, 3, 1.0)]
    queries = store.texts(np.array([2, 0]))
    assert queries.input_ids.tolist() == [3, 3, 1, 5, 6]
    assert (queries.pool_start.tolist(), queries.pool_end.tolist()) == ([0, 1], [2, 3])
    assert store.texts(np.array([1]), column=1).input_ids.tolist() == [9, 9]
    assert store.ids(np.array([2, 0])) == ["c", "a"]
    assert store.lengths().tolist() == [4, 4, 5]


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ExampleWriter(tmp_path, width=1):
        raise RuntimeError("killed")
    with pytest.raises(VerificationError, match="no finished training examples"):
        ExampleStore(tmp_path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    tokens = tmp_path / "tokens.int32"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(VerificationError, match="remove the folder"):
        ExampleStore(tmp_path)
