"""The loop with the plain engine: no Ray, no DeepSpeed, no model of ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from rayvec.training.loop import DivergedError, PlainEngine, Progress, train
from rayvec.training.optimizers import OptimizerConfig

torch.set_num_threads(1)
CONFIG = OptimizerConfig(learning_rate=0.05, schedule="constant")


@dataclass
class Point:
    x: torch.Tensor
    number: float = 0.0
    tokens: int = 1
    document_ids: tuple[str, ...] = ("doc-7",)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, point: Point) -> tuple[torch.Tensor, dict[str, float]]:
        return (self.weight * point.x).sum().square(), {"x": point.number}


@dataclass
class Recorder:
    lines: list[Progress] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def logged(self, progress: Progress) -> None:
        self.lines.append(progress)

    def stepped(self, step: int) -> None:
        self.steps.append(step)


def _point(step: int) -> list[Point]:
    return [Point(torch.tensor([1.0, 0.5]), 1.0 + step)]


def test_trains_logs_and_calls_hooks() -> None:
    model, recorder = Line(), Recorder()
    engine = PlainEngine(model, CONFIG)
    train(engine, _point, steps=5, optimizer=CONFIG, log_every=2, hooks=[recorder])
    assert recorder.steps == [1, 2, 3, 4, 5]
    assert [line.step for line in recorder.lines] == [2, 4, 5]
    assert recorder.lines[0].metrics["x"] == 1.5  # the mean of steps 0 and 1
    assert recorder.lines[-1].metrics["loss"] < recorder.lines[0].metrics["loss"]


@pytest.mark.parametrize(("bad", "name"), [(float("nan"), "loss is nan"), (1e30, "loss is inf")])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_documents(bad: float, name: str) -> None:
    engine, recorder = PlainEngine(Line(), CONFIG), Recorder()

    def point(step: int) -> list[Point]:
        return [Point(torch.tensor([bad, 0.0]))] if step == 3 else _point(step)

    with pytest.raises(DivergedError, match=f"{name} at step 3; the batch holds doc-7"):
        train(engine, point, steps=5, optimizer=CONFIG, hooks=[recorder])
    assert recorder.steps == [1, 2, 3]


def test_another_ranks_loss_stops_this_one_too() -> None:
    engine = PlainEngine(Line(), CONFIG)
    with pytest.raises(DivergedError) as caught:
        train(engine, _point, steps=2, optimizer=CONFIG, mean=lambda values: {**values, "loss": float("inf")})
    assert caught.value.elsewhere


def test_parts_of_a_batch_are_one_step() -> None:
    """Two halves of a point's loss move the weights as the whole does."""
    whole, halves = PlainEngine(Line(), CONFIG), PlainEngine(Line(), CONFIG)
    train(whole, lambda step: [*_point(step), *_point(step)], steps=2, optimizer=CONFIG)

    def scaled(step: int) -> list[Point]:
        return [Point(point.x * 2**0.5) for point in _point(step)]

    train(halves, scaled, steps=2, optimizer=CONFIG)
    torch.testing.assert_close(whole.weights()["weight"], halves.weights()["weight"])


def test_a_restored_engine_goes_on_to_the_bit() -> None:
    straight = PlainEngine(Line(), CONFIG)
    train(straight, _point, steps=6, optimizer=CONFIG)
    first, second = PlainEngine(Line(), CONFIG), PlainEngine(Line(), CONFIG)
    train(first, _point, steps=3, optimizer=CONFIG)
    second.restore(first.weights(), [first.optimizer_state()])
    train(second, _point, steps=6, start_step=3, optimizer=CONFIG)
    assert torch.equal(straight.weights()["weight"], second.weights()["weight"])
