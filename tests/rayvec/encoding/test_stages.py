"""The stages on a real Ray: nothing lost when workers die; what a worker raises reaches the driver as it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.encoding import stages
from rayvec.encoding.stages import EncodeUnit, Pool, ReadUnit, check_chain, run_units
from rayvec.errors import MismatchError, RayvecError, UserError
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from tests.corpora import EXITS, KILLS, REFUSED, MarkedEncoder, documents, work_on

pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:ray\.")  # Ray warns of its own settings
POOL = Pool(actors=2, num_cpus=1, num_gpus=0, read_cpus=0.5, threads=None)


def fit(cpus: float, gpus: float = 0, **asked: Any) -> tuple[int, float, float, int | None]:
    pool = Pool.fit(cpus, gpus, **({"node_cpus": cpus, "actors": None, "num_gpus": 0, "threads": None} | asked))
    return pool.actors, pool.num_cpus, pool.num_gpus, pool.threads


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "expected"),
    [
        (1, 0, {}, (1, 0.5, 0, 1)),
        (2, 0, {}, (1, 1.5, 0, 2)),
        (4, 0, {}, (1, 3.5, 0, 4)),
        (64, 0, {}, (15, 4.0, 0, 4)),
        (4, 0, {"node_cpus": 2}, (2, 1.5, 0, 2)),
        (3, 0, {"node_cpus": 2}, (1, 1.5, 0, 2)),
        (16, 0, {"node_cpus": 8}, (3, 4.0, 0, 4)),
        (4, 0, {"actors": 2}, (2, 1.75, 0, 4)),
        (16, 2, {"num_gpus": 1}, (2, 1.0, 1, None)),
        (16, 1, {"num_gpus": 0.5}, (2, 1.0, 0.5, None)),
    ],
)
def test_the_pool_fits_the_cluster_and_leaves_room_to_read(
    cpus: float, gpus: float, asked: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert fit(cpus, gpus, **asked) == expected


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ({"min_actors": 1}, 1, 15),
        ({"min_actors": 2, "actors": 40}, 2, 40),  # more than there is room for yet
        ({"min_actors": 20}, 20, 20),
        ({"actors": 3}, None, 3),
    ],
)
def test_a_pool_that_grows_need_only_begin(asked: dict[str, Any], least: int | None, most: int) -> None:
    pool = Pool.fit(64, 0, **({"node_cpus": 64, "actors": None, "num_gpus": 0, "threads": None} | asked))
    assert (pool.least, pool.actors) == (least, most)
    assert (pool.least or pool.actors) * pool.num_cpus + pool.read_cpus <= 64


@pytest.mark.parametrize("asked", [{"actors": 40}, {"num_gpus": 1}, {"min_actors": 40, "actors": 80}])
def test_a_pool_that_would_never_start_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        fit(2, **asked)


def test_a_cluster_without_cpus_for_work_is_refused() -> None:
    with pytest.raises(UserError, match="the cluster has no CPUs for work"):
        fit(0)


def test_a_stage_that_lacks_a_column_is_refused_before_anything_runs() -> None:
    with pytest.raises(AssertionError, match="EncodeUnit needs"):
        check_chain(["unit"], [EncodeUnit, ReadUnit])


def embedded(work: Any, unit_rows: int, pool: Pool = POOL) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """id → vector, and the refused records, after a run over all units."""
    from rayvec.data.embeddings import vectors

    records = [record for record, _ in run_units(work, work.source.units(unit_rows), pool)]
    rows: dict[str, Any] = {}
    for record in records:
        table = work.sink.table(record)
        assert not rows.keys() & set(table["id"].to_pylist())
        rows |= dict(zip(table["id"].to_pylist(), vectors(table), strict=True))
    return rows, [line for record in records for line in work.sink.lines(record.unit)]


def check_vectors(rows: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    """Every document has a row, and in it the vector of its own text."""
    assert rows.keys() == {id_ for id_, _ in pairs}
    expected = HashEncoder(dim=16).encode([text for _, text in pairs])
    np.testing.assert_array_equal(np.stack([rows[id_] for id_, _ in pairs]), expected)


def test_every_record_comes_out_once(ray_cluster: None, tmp_path: Path) -> None:
    pairs = documents(200, d17=REFUSED)
    rows, [line] = embedded(work_on(tmp_path, pairs), 30)
    check_vectors(rows, [pair for pair in pairs if pair[0] != "d17"])
    assert (line["id"], line["reason"]) == ("d17", "empty_text")


def test_a_pool_that_grows_does_the_same(ray_cluster: None, tmp_path: Path) -> None:
    pairs = documents(100)
    rows, lines = embedded(work_on(tmp_path, pairs), 10, replace(POOL, least=1))
    check_vectors(rows, pairs)
    assert lines == []


def once(path: Path) -> Callable[[str], MarkedEncoder]:
    """A loader whose encoder kills its process on its second batch, if none has done so before."""

    class Dying(MarkedEncoder):
        calls = 0

        def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
            self.calls += 1
            if self.calls == 2 and not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_tokens(batch)

    return lambda _: Dying(dim=16)


def test_a_killed_encoder_loses_nothing_and_doubles_nothing(ray_cluster: None, tmp_path: Path) -> None:
    pairs = documents(200)
    work = replace(work_on(tmp_path / "out", pairs), load_encoder=once(tmp_path / "dead"))
    rows, lines = embedded(work, 20)
    check_vectors(rows, pairs)
    assert (tmp_path / "dead").exists() and lines == []


@pytest.mark.timeout(400)
def test_encoders_that_hold_every_cpu_do_not_stop_the_reading(ray_cluster: None, tmp_path: Path) -> None:
    """As after the loss of a node: the pool was sized for more than there is now."""
    work = work_on(tmp_path, documents(40))
    wide = Pool(actors=5, num_cpus=1, num_gpus=0, read_cpus=0.5, threads=None)
    assert len([*run_units(work, work.source.units(4), wide)]) == 10


def test_a_text_that_kills_every_worker_is_refused_and_the_run_ends(ray_cluster: None, tmp_path: Path) -> None:
    pairs = documents(60, d25=f"a {KILLS}")
    rows, [line] = embedded(work_on(tmp_path, pairs), 20)
    check_vectors(rows, [pair for pair in pairs if pair[0] != "d25"])
    assert (line["id"], line["reason"]) == ("d25", "worker_crash")


def slow(_: str) -> MarkedEncoder:
    """A loader whose encoder never ends in the time of a test."""

    class Slow(MarkedEncoder):
        def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
            time.sleep(600)
            return super().encode_tokens(batch)

    return Slow(dim=16)


@pytest.mark.timeout(400)
def test_a_run_in_which_nothing_moves_ends_in_one_line(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "NO_PROGRESS_S", 8)
    work = replace(work_on(tmp_path, documents(10)), load_encoder=slow)
    with pytest.raises(RayvecError, match=r"^no unit was done for too long \(.*; take a smaller unit_rows") as caught:
        list(run_units(work, work.source.units(10), POOL))
    assert "\n" not in str(caught.value)


def test_how_long_nothing_may_move_is_the_users_choice(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 77)
    monkeypatch.setenv("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "77")
    stages.quiet_logs()
    assert context.execution_no_progress_timeout_s == 77
    monkeypatch.delenv("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S")
    stages.quiet_logs()
    assert context.execution_no_progress_timeout_s == 24 * 3600


def test_an_encoder_that_exits_is_a_failure_of_the_text(ray_cluster: None, tmp_path: Path) -> None:
    rows, [line] = embedded(work_on(tmp_path, documents(40, d3=f"a {EXITS}")), 20)
    assert (line["id"], line["reason"], len(rows)) == ("d3", "SystemExit", 39)


def test_an_error_of_a_worker_reaches_the_driver_as_it_is(ray_cluster: None, tmp_path: Path) -> None:
    work = replace(work_on(tmp_path, documents(10)), load_encoder=lambda _: HashEncoder(dim=32))
    with pytest.raises(MismatchError, match=r"^the plan and the encoder that was loaded .* weights") as caught:
        list(run_units(work, work.source.units(10), POOL))
    assert "Traceback" not in str(caught.value)
