"""The plan: the same one may be run again; another is refused with the name of what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rayvec.data.units import Input, Unit
from rayvec.encoding.shards import Plan, agree, check_output
from rayvec.errors import MismatchError, UserError
from rayvec.modeling.hash_encoder import HashEncoder

UNIT = Unit("00000-a", "jsonl", "a.jsonl", 0, 10, 1, 10, 100)
PLAN = Plan(
    inputs=(Input("a.jsonl", 100, 1), Input("b.jsonl", 50, 1)),
    units=(UNIT,),
    fingerprint=HashEncoder(dim=16).fingerprint,
    settings={"dtype": "float32", "source": {"id_column": None}},
)


def test_a_plan_reads_back_as_it_was_written() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_the_same_plan_goes_on(tmp_path: Path) -> None:
    agree(str(tmp_path), PLAN)
    assert agree(str(tmp_path), PLAN).sha256 == PLAN.sha256


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(PLAN, fingerprint=HashEncoder(dim=32).fingerprint), "dim"),
        (replace(PLAN, settings={**PLAN.settings, "dtype": "float16"}), "dtype is 'float16' now, and was 'float32'"),
        (replace(PLAN, settings={**PLAN.settings, "source": {"id_column": "key"}}), "source.id_column is 'key'"),
        (replace(PLAN, inputs=PLAN.inputs[:1]), "input b.jsonl is gone"),
        (replace(PLAN, inputs=(*PLAN.inputs, Input("c.jsonl", 1, 1))), "input c.jsonl is new"),
        (replace(PLAN, inputs=(Input("a.jsonl", 101, 1), PLAN.inputs[1])), "input a.jsonl has 101 bytes now"),
        (replace(PLAN, inputs=(Input("a.jsonl", 100, 2), PLAN.inputs[1])), "input a.jsonl was modified"),
        (replace(PLAN, units=()), "other units"),
    ],
)
def test_another_plan_is_refused_and_the_difference_named(tmp_path: Path, other: Plan, named: str) -> None:
    agree(str(tmp_path), PLAN)
    with pytest.raises(MismatchError) as caught:
        agree(str(tmp_path), other)
    assert named in str(caught.value)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex"):
        check_output(str(tmp_path))


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; choose a folder"):
        check_output(str(tmp_path / "file"))
