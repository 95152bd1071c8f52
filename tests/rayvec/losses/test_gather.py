"""The gather that keeps gradients: two gloo processes, gradients averaged as DDP does, equal one process."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch

from rayvec.losses.contrastive import info_nce
from rayvec.losses.gather import gather_rows, rank, sum_over_ranks, world_size

RANKS, ROWS = 2, 3


def _model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 4, bias=False).double()


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (RANKS * ROWS, 5)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def _gradient(rows: slice) -> torch.Tensor:
    model, (queries, documents) = _model(), _inputs()
    everybody = gather_rows(model(documents[rows]))
    positives = torch.arange(rows.start, rows.stop)
    info_nce(model(queries[rows]), everybody, positives, scale=20.0).loss.backward()
    assert model.weight.grad is not None
    return model.weight.grad


def _worker(number: int, folder: str, results: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=RANKS)
    gradient = _gradient(slice(number * ROWS, (number + 1) * ROWS))
    dist.all_reduce(gradient)
    plain = gather_rows(torch.full((1,), float(number)))
    results.put((number, (gradient / RANKS).tolist(), sum_over_ranks(float(number + 1)), plain.tolist()))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_worker, args=(n, str(folder), queue)) for n in range(RANKS)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    return results


def test_averaged_gradients_equal_the_single_process(answers: list[Any]) -> None:
    single = _gradient(slice(0, RANKS * ROWS))
    for _, gradient, _, _ in answers:
        torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), single, atol=1e-12, rtol=1e-10)


def test_sums_and_rows_without_gradient(answers: list[Any]) -> None:
    assert [(total, rows) for _, _, total, rows in answers] == [(3.0, [0.0, 1.0])] * RANKS


def test_one_process_is_a_world_of_its_own() -> None:
    rows = torch.randn(2, 3)
    assert gather_rows(rows) is rows
    assert (rank(), world_size(), sum_over_ranks(2.5)) == (0, 1, 2.5)
