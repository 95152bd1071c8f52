"""Finding the record that a unit cannot be done with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rayvec import storage
from rayvec.encoding.attempts import Attempts, Rows, survive
from rayvec.errors import RayvecError, StorageError


def begin(folder: Path) -> Attempts:
    return Attempts.begin(str(folder), "00000-a", "encode")


def failing_on(*bad: int, error: BaseException | None = None) -> tuple[Callable[[Rows], list[int]], list[int]]:
    """Work that fails when one of `bad` is among its rows, and the sizes of the batches it was called with."""
    sizes: list[int] = []

    def work(rows: Rows) -> list[int]:
        sizes.append(len(rows))
        if set(rows.tolist()) & set(bad):
            raise error or KeyError("bad")
        return [row * 10 for row in rows.tolist()]

    return work, sizes


def test_work_that_goes_well_is_done_at_once(tmp_path: Path) -> None:
    work, sizes = failing_on()
    [(rows, result)] = survive(work, 50, begin(tmp_path)).pieces
    assert (rows.tolist(), result, sizes) == (list(range(50)), [row * 10 for row in range(50)], [50])


def test_halving_finds_the_records_in_few_steps(tmp_path: Path) -> None:
    work, sizes = failing_on(5, 900)
    outcome = survive(work, 1024, begin(tmp_path))
    assert outcome.failures == {5: "KeyError", 900: "KeyError"}
    assert sorted(row for rows, _ in outcome.pieces for row in rows.tolist()) == sorted({*range(1024)} - {5, 900})
    assert len(sizes) <= 2 * 2 * 10 + 1


def test_an_error_of_ours_is_no_fault_of_a_record(tmp_path: Path) -> None:
    work, _ = failing_on(3, error=StorageError("no space left"))
    with pytest.raises(StorageError):
        survive(work, 8, begin(tmp_path))


@pytest.mark.parametrize("count", [1, 8, 1000])
def test_a_gpu_that_can_be_used_no_more_is_no_fault_of_a_record(tmp_path: Path, count: int) -> None:
    broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    work, sizes = failing_on(0, error=broken)
    with pytest.raises(RayvecError, match=r"a worker's GPU failed .*; run the same command again"):
        survive(work, count, begin(tmp_path))
    assert sizes == [count]


def test_a_gpu_without_room_for_all_may_have_it_for_half(tmp_path: Path) -> None:
    work, _ = failing_on(3, error=torch.AcceleratorError("CUDA error: out of memory"))
    assert survive(work, 8, begin(tmp_path)).failures == {3: "AcceleratorError"}


def test_two_deaths_may_be_chance_and_the_third_attempt_goes_one_by_one(tmp_path: Path) -> None:
    begin(tmp_path), begin(tmp_path)
    work, sizes = failing_on()
    survive(work, 5, begin(tmp_path))
    assert sizes == [1] * 5


def test_a_record_that_was_entered_and_never_left_is_given_up_the_second_time(tmp_path: Path) -> None:
    begin(tmp_path), begin(tmp_path)
    begin(tmp_path).enter(3)  # and the worker dies
    assert not begin(tmp_path).given_up(3)
    attempts = begin(tmp_path)
    attempts.enter(3)
    attempts = begin(tmp_path)
    assert attempts.given_up(3)
    assert survive(failing_on()[0], 5, attempts).failures == {3: "worker_crash"}


def test_deaths_outside_any_record_come_to_an_end(tmp_path: Path) -> None:
    with pytest.raises(RayvecError, match="killed its encode worker 10 times"):
        for _ in range(20):
            begin(tmp_path)


def test_a_unit_that_is_done_leaves_no_mark(tmp_path: Path) -> None:
    begin(tmp_path).finish()
    assert begin(tmp_path).number == 1


def test_a_mark_that_goes_before_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    read = storage.read_json

    def late(uri: str) -> storage.JsonObject:
        storage.delete(uri)  # the worker of a killed run ends the unit beside the next run's
        return read(uri)

    monkeypatch.setattr(storage, "read_json", late)
    assert begin(tmp_path).number == 1
