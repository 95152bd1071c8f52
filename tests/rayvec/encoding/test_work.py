"""The work on one unit: every record comes out once, with its own vector or with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayvec.data.embeddings import vectors
from rayvec.encoding.sink import Line, Record
from rayvec.encoding.work import complete, prepare
from rayvec.errors import RayvecError
from rayvec.modeling.hash_encoder import HashEncoder
from tests.corpora import KILLS, NOT_FINITE, RAISES, REFUSED, documents, in_a_process, marked, work_on


def embed_one(output: Path, pairs: list[tuple[str, str]], **options: Any) -> tuple[Record, pa.Table, list[Line]]:
    """All documents as one unit: its record, its part, its refused records."""
    work = work_on(output, pairs, **options)
    [unit] = work.source.units(len(pairs))
    record = complete(work, unit, prepare(work, unit, marked("")), marked(""))
    return record, work.sink.table(record), work.sink.lines(unit.name)


def test_each_row_has_the_vector_of_its_own_text(tmp_path: Path) -> None:
    pairs = documents(40)
    _, table, _ = embed_one(tmp_path, pairs)
    assert table["id"].to_pylist() == [id_ for id_, _ in pairs]
    np.testing.assert_array_equal(vectors(table), HashEncoder(dim=16).encode([text for _, text in pairs]))


def test_a_refused_record_becomes_a_line_and_the_rest_rows(tmp_path: Path) -> None:
    record, table, [line] = embed_one(tmp_path, documents(10, d3=REFUSED))
    assert (line["position"], line["reason"], line["id"]) == (3, "empty_text", "d3")
    assert (table.num_rows, record.quarantined, record.reasons) == (9, 1, {"empty_text": 1})


def test_a_unit_of_refused_records_alone_is_an_empty_part(tmp_path: Path) -> None:
    record, table, lines = embed_one(tmp_path, [("a", REFUSED), ("b", REFUSED)])
    assert (table.num_rows, len(lines), record.input_records) == (0, 2, 2)


def test_a_text_that_raises_is_found_and_named_by_the_exception(tmp_path: Path) -> None:
    _, table, [line] = embed_one(tmp_path, documents(33, d20=f"some {RAISES}"))
    assert (line["id"], line["reason"], line["detail"]) == ("d20", "ArithmeticError", "marked")
    assert table.num_rows == 32


def test_an_encoder_that_fails_on_everything_is_no_fault_of_the_records(tmp_path: Path) -> None:
    with pytest.raises(RayvecError, match="every one of 20 records fails, the first with ArithmeticError"):
        embed_one(tmp_path, [(f"d{i}", RAISES) for i in range(20)])


def test_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    _, table, [line] = embed_one(tmp_path, documents(12, d5=f"some {NOT_FINITE}"))
    assert (line["id"], line["reason"]) == ("d5", "nonfinite")
    assert np.isfinite(vectors(table)).all()


def test_of_equal_ids_the_first_is_kept_and_named(tmp_path: Path) -> None:
    record, table, [line] = embed_one(tmp_path, [("a", "one"), ("b", "two"), ("a", "three")])
    assert table["text"].to_pylist() == ["one", "two"]
    assert (line["position"], line["reason"], line["kept"]["position"]) == (2, "duplicate", 0)
    assert (record.duplicates, record.quarantined) == (1, 0)


def test_a_refused_record_does_not_take_the_place_of_a_good_one_with_its_id(tmp_path: Path) -> None:
    _, table, lines = embed_one(tmp_path, [("a", NOT_FINITE), ("a", "good"), ("b", "two")])
    assert table["text"].to_pylist() == ["good", "two"]
    assert [line["reason"] for line in lines] == ["nonfinite"]


def test_a_long_text_is_cut_by_tokens_and_flagged(tmp_path: Path) -> None:
    record, table, _ = embed_one(tmp_path, documents(3, d1="long text " * 100_000))
    assert table["truncated"].to_pylist() == [False, True, False]
    assert table["n_tokens"].to_pylist()[1] == HashEncoder().max_length
    assert record.truncated == 1


def test_vectors_are_stored_in_the_type_asked_for(tmp_path: Path) -> None:
    _, table, _ = embed_one(tmp_path, documents(5), dtype="float16")
    assert table.schema.field("embedding").type == pa.list_(pa.field("item", pa.float16(), nullable=False), 16)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_small_vectors_are_read_as_floats_again_and_verify(tmp_path: Path, dtype: Any) -> None:
    pairs = documents(40)
    _, table, _ = embed_one(tmp_path, pairs, dtype=dtype)
    whole_ND = HashEncoder(dim=16).encode([text for _, text in pairs])
    found_ND = vectors(table)
    if dtype == "int8":
        assert np.abs(found_ND - whole_ND).max() < 1 / 127
    else:
        np.testing.assert_array_equal(found_ND, np.where(whole_ND > 0, 0.25, -0.25))
    assert found_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), 1, atol=1e-6)


def test_the_first_dimensions_are_kept_at_length_one(tmp_path: Path) -> None:
    pairs = documents(5)
    _, table, _ = embed_one(tmp_path, pairs, dimensions=4)
    first_ND = HashEncoder(dim=16).encode([text for _, text in pairs])[:, :4]
    expected = first_ND / np.linalg.norm(first_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(table), expected, atol=1e-6)


def test_a_vector_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    pairs = documents(40)
    whole_ND = HashEncoder(dim=16).encode([text for _, text in pairs])
    empty = np.flatnonzero(~whole_ND[:, :1].any(axis=1))
    assert len(empty)
    record, _, lines = embed_one(tmp_path, pairs, dimensions=1)
    assert [line["position"] for line in lines] == empty.tolist()
    assert record.reasons == {"nonfinite": len(empty)}


def test_the_text_is_left_out_when_it_is_not_kept(tmp_path: Path) -> None:
    _, table, _ = embed_one(tmp_path, documents(5), keep_text=False)
    assert table.schema.names == ["id", "title", "embedding", "n_tokens", "truncated"]


def test_the_instruction_is_not_part_of_what_is_pooled_but_of_what_is_counted(tmp_path: Path) -> None:
    _, plain, _ = embed_one(tmp_path / "a", documents(5))
    _, told, _ = embed_one(tmp_path / "b", documents(5), instruction="find it")
    assert (np.array(told["n_tokens"]) - np.array(plain["n_tokens"])).tolist() == [2] * 5


def test_a_committed_unit_is_not_done_again(tmp_path: Path) -> None:
    first, _, _ = embed_one(tmp_path, documents(5))
    again, _, _ = embed_one(tmp_path, documents(5, d1="another text"))
    assert again == first


def test_nothing_is_left_of_the_attempts(tmp_path: Path) -> None:
    embed_one(tmp_path, documents(5))
    assert list((tmp_path / "attempts").iterdir()) == []


def test_a_text_that_kills_its_process_is_found_and_refused(tmp_path: Path) -> None:
    pairs = documents(6, d2=f"a {KILLS}")
    code = f"from tests.rayvec.encoding.test_work import *; embed_one(Path({str(tmp_path)!r}), {pairs!r})"
    deaths = 0
    while in_a_process(code) != 0:
        deaths += 1
        assert deaths < 8
    [line] = [json.loads(file.read_text()) for file in (tmp_path / "quarantine").iterdir()]
    assert (line["id"], line["reason"], deaths) == ("d2", "worker_crash", 4)


def test_what_a_unit_took_is_counted_beside_its_record(tmp_path: Path) -> None:
    work = work_on(tmp_path, documents(40, d3="long text " * 1000))
    [unit] = work.source.units(40)  # type: ignore[attr-defined]
    prepared = prepare(work, unit, marked(""))
    assert min(prepared.spent.read, prepared.spent.tokenize) > 0 == prepared.spent.encode
    record = complete(work, unit, prepared, marked(""))
    assert min(prepared.spent.encode, prepared.spent.write) > 0
    assert (prepared.spent.tokens, prepared.spent.padding) == (record.tokens, 0)
    assert sum(prepared.spent.shares.values()) == pytest.approx(1, abs=1e-3)
    assert (sum(record.lengths), record.lengths_truncated) == (40, [0] * 16 + [1])
