"""MNTP's loss: which place predicts which label, against a float64 computation written out here."""

from __future__ import annotations

import math

import pytest
import torch

from rayvec.losses.masked_next_token import masked_next_token_loss

torch.set_num_threads(1)


def test_label_stays_at_the_masked_place_and_is_predicted_from_the_one_before() -> None:
    # One text "5 6 7", token 6 at place 1 is masked. The head is the identity over a vocabulary of 3: only the output
    # at place 0 counts, logits (0, 2, 1), label 1: -log(e^2 / (e^0 + e^2 + e^1)).
    states_TD = torch.tensor([[0.0, 2.0, 1.0], [50.0, -50.0, 0.0], [9.0, 9.0, 9.0]])
    result = masked_next_token_loss(states_TD, torch.nn.Identity(), torch.tensor([1]), torch.tensor([1]))
    assert float(result.loss) == pytest.approx(-math.log(math.exp(2) / (1 + math.exp(2) + math.exp(1))), abs=1e-6)
    assert int(result.correct) == 1


def test_equals_a_plain_float64_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    states_TD = torch.randn(12, 4, generator=generator)
    weight_VD = torch.randn(7, 4, generator=generator)
    positions, labels = [1, 2, 5, 11], [3, 0, 6, 2]
    result = masked_next_token_loss(
        states_TD, lambda x: x @ weight_VD.T, torch.tensor(positions), torch.tensor(labels), chunk=3
    )
    total = 0.0
    for position, label in zip(positions, labels, strict=True):
        logits = [
            sum(a * b for a, b in zip(states_TD[position - 1].tolist(), row, strict=True)) for row in weight_VD.tolist()
        ]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[label]
    assert float(result.loss) == pytest.approx(total / 4, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_neither_loss_nor_gradients(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(4, 9, bias=False)
    data = torch.randn(20, 4, generator=generator)
    positions, labels = torch.arange(1, 20, 2), torch.arange(10) % 9

    def run(size: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        head.zero_grad()
        states = data.clone().requires_grad_()
        loss = masked_next_token_loss(states, head, positions, labels, chunk=size).loss
        loss.backward()
        assert states.grad is not None and head.weight.grad is not None
        return float(loss.detach()), states.grad, head.weight.grad.clone()

    (loss, states, weight), (loss0, states0, weight0) = run(chunk), run(10)
    assert loss == pytest.approx(loss0, rel=1e-6)
    torch.testing.assert_close(states, states0, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weight, weight0, atol=1e-6, rtol=1e-5)


def test_a_rank_without_a_mask_gives_zero_and_gradients() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    result = masked_next_token_loss(states, torch.nn.Identity(), none, none, denominator=5)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0 and states.grad is not None


def test_denominator_replaces_the_number_of_masks() -> None:
    states, positions, labels = torch.randn(5, 3), torch.tensor([1, 3]), torch.tensor([0, 2])
    own = masked_next_token_loss(states, torch.nn.Identity(), positions, labels).loss
    other = masked_next_token_loss(states, torch.nn.Identity(), positions, labels, denominator=8).loss
    assert float(other) == pytest.approx(float(own) * 2 / 8)
