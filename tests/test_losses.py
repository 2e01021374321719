"""Golden tests: the published formulas as plain numpy loops in float64, written from the papers."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from refbert_dist.losses import (
    cross_entropy,
    hidden_mse,
    mse_regression,
    padded_score_mse,
    relation_divergence,
    score_mse,
    soft_cross_entropy,
)

Array = NDArray[np.float64]
LENGTHS = (7, 4, 1)
B, S = len(LENGTHS), 7
MASK = torch.arange(S)[None, :] < torch.tensor(LENGTHS)[:, None]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numpy_softmax(row: Array) -> Array:
    shifted = np.exp(row - row.max())
    return np.asarray(shifted / shifted.sum())


def test_hidden_loss_is_tinybert_equation_8() -> None:
    """MSE(H_S W_h, H_T), the mean over all elements of one sequence; here the sequences joined."""
    student, teacher, width_map = draw(B, S, 5, seed=1), draw(B, S, 8, seed=2), draw(5, 8, seed=3)
    squares: list[float] = []
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            projected = [sum(student[b, t, i].item() * width_map[i, j].item() for i in range(5)) for j in range(8)]
            squares += [(projected[j] - teacher[b, t, j].item()) ** 2 for j in range(8)]
    found = hidden_mse(student @ width_map, teacher, MASK) / sum(LENGTHS)
    assert found.item() == pytest.approx(np.mean(squares), abs=1e-6)


def test_score_loss_is_tinybert_equation_7() -> None:
    """(1/h) sum_i MSE(A_i^S, A_i^T) on scores before the softmax."""
    student, teacher = draw(B, 3, S, S, seed=1), draw(B, 3, S, S, seed=2)
    per_head = []
    for head in range(3):
        squares = [
            (student[b, head, i, j].item() - teacher[b, head, i, j].item()) ** 2
            for b, length in enumerate(LENGTHS)
            for i in range(length)
            for j in range(length)
        ]
        per_head.append(np.mean(squares))
    found = score_mse(student, teacher, MASK) / sum(length**2 for length in LENGTHS)
    assert found.item() == pytest.approx(np.mean(per_head), abs=1e-6)


def test_padded_losses_are_those_of_tinyberts_code() -> None:
    """The code's own lines on whole, padded batches: MSELoss over everything, masked scores set to 0 before."""
    student, teacher = 90 * draw(B, 3, S, S, seed=1), 90 * draw(B, 3, S, S, seed=2)
    added = (1.0 - MASK.double())[:, None, None, :] * -10000.0
    by_code = [np.where((x + added).numpy() <= -1e2, 0.0, (x + added).numpy()) for x in (student, teacher)]
    real = MASK[:, None, None, :].expand(student.shape)
    assert (student[real] <= -100).any(), "a real score may be taken for a masked one, too"
    found = padded_score_mse(student, teacher, MASK) / (B * S * S)
    assert found.item() == pytest.approx(((by_code[0] - by_code[1]) ** 2).mean(), rel=1e-9)

    states = draw(B, S, 8, seed=3), draw(B, S, 8, seed=4)
    found = hidden_mse(*states, torch.ones_like(MASK)) / (B * S)
    assert found.item() == pytest.approx(((states[0] - states[1]).numpy() ** 2).mean(), rel=1e-9)


def test_the_codes_prediction_loss_is_a_mean_over_classes_too() -> None:
    student, teacher = draw(6, 4, seed=1).numpy(), draw(6, 4, seed=2).numpy()
    products = [
        -numpy_softmax(z_teacher) * np.log(numpy_softmax(z_student))
        for z_student, z_teacher in zip(student, teacher, strict=True)
    ]
    found = soft_cross_entropy(torch.from_numpy(student), torch.from_numpy(teacher), 1.0) / (6 * 4)
    assert found.item() == pytest.approx(np.array(products).mean(), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_prediction_loss_is_tinybert_equation_10(temperature: float) -> None:
    """CE(z_T / t, z_S / t), meaned over samples."""
    student, teacher = draw(6, 4, seed=1).numpy(), draw(6, 4, seed=2).numpy()
    losses = []
    for z_student, z_teacher in zip(student, teacher, strict=True):
        target, predicted = numpy_softmax(z_teacher / temperature), numpy_softmax(z_student / temperature)
        losses.append(-sum(target[c] * math.log(predicted[c]) for c in range(4)))
    found = soft_cross_entropy(torch.from_numpy(student), torch.from_numpy(teacher), temperature) / 6
    assert found.item() == pytest.approx(np.mean(losses), abs=1e-6)


def test_relation_loss_is_minilmv2() -> None:
    """Widths 12 and 8, heads 3 and 2, cut into 4 relation heads; the mean over Q-Q, K-K, V-V, heads and tokens."""
    student = tuple(draw(B, 2, S, 4, seed=seed) for seed in (1, 2, 3))
    teacher = tuple(draw(B, 3, S, 4, seed=seed) for seed in (4, 5, 6))

    def relation(states: torch.Tensor, b: int, head: int, length: int) -> Array:
        joined = np.concatenate([states[b, h].numpy() for h in range(states.shape[1])], axis=-1)[:length]
        width = joined.shape[1] // 4
        cut = joined[:, head * width : (head + 1) * width]
        return np.stack([numpy_softmax(np.array([row @ key for key in cut]) / math.sqrt(width)) for row in cut])

    losses = []
    for kind in range(3):
        for head in range(4):
            divergences = []
            for b, length in enumerate(LENGTHS):
                of_teacher, of_student = (relation(x[kind], b, head, length) for x in (teacher, student))
                divergences += list((of_teacher * np.log(of_teacher / of_student)).sum(-1))
            losses.append(np.mean(divergences))
    found = relation_divergence(student, teacher, MASK, 4) / sum(LENGTHS)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(np.mean(losses), abs=1e-6)


def test_relation_loss_of_equal_states_is_zero_and_heads_must_divide() -> None:
    states = (draw(B, 2, S, 4), draw(B, 2, S, 4, seed=1), draw(B, 2, S, 4, seed=2))
    assert relation_divergence(states, states, MASK, 2).item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="relation_heads is 3, which does not divide the width 8"):
        relation_divergence(states, states, MASK, 3)


def test_label_losses() -> None:
    logits, labels = draw(5, 3), torch.tensor([0, 2, 1, 1, 0])
    by_hand = -sum(math.log(numpy_softmax(row.numpy())[label]) for row, label in zip(logits, labels, strict=True))
    assert cross_entropy(logits, labels).item() == pytest.approx(by_hand, abs=1e-9)
    predictions, targets = draw(5, 1), draw(5, seed=1)
    squares = [(predictions[i, 0].item() - targets[i].item()) ** 2 for i in range(5)]
    assert mse_regression(predictions, targets).item() == pytest.approx(sum(squares), abs=1e-9)


def of_hidden(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden_mse(student, teacher, mask)


def of_scores(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return score_mse(student[:, None] @ student[:, None].mT, teacher[:, None] @ teacher[:, None].mT, mask)


def of_relations(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    split = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (student, teacher)]
    return relation_divergence((split[0],) * 3, (split[1],) * 3, mask, 4)


def of_padded_scores(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return padded_score_mse(student[:, None] @ student[:, None].mT, teacher[:, None] @ teacher[:, None].mT, mask)


LOSSES = [of_hidden, of_scores, of_relations]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rubbish", [1e30, math.nan])
def test_padding_has_no_influence(loss: Loss, rubbish: float) -> None:
    student, teacher = draw(B, S, 8, seed=1), draw(B, S, 8, seed=2)
    values, gradients = [], []
    for fill in (0.0, rubbish):
        filled = [x.masked_fill(~MASK[..., None], fill).requires_grad_() for x in (student, teacher)]
        if loss is of_scores:
            # The products of this case are made outside of the loss: rubbish enters the scores themselves.
            scores = [
                (x.detach()[:, None] @ x.detach()[:, None].mT)
                .masked_fill(~(MASK[:, None, :, None] & MASK[:, None, None, :]), fill)
                .requires_grad_()
                for x in (student, teacher)
            ]
            values.append(score_mse(scores[0], scores[1], MASK))
            gradients.append(torch.autograd.grad(values[-1], scores[0])[0])
        else:
            values.append(loss(filled[0], filled[1], MASK))
            gradients.append(torch.autograd.grad(values[-1], filled[0])[0])
    assert values[0] > 0
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
    if gradients[0].dim() == 3:
        assert gradients[0][~MASK].abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_sum_over_micro_batches_is_the_sum_over_the_batch(loss: Loss) -> None:
    """Cut by samples, and to the longest sample of each part."""
    student, teacher = draw(B, S, 8, seed=1), draw(B, S, 8, seed=2)
    parts = [
        loss(student[b : b + 1, :length], teacher[b : b + 1, :length], MASK[b : b + 1, :length])
        for b, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(sum(parts), loss(student, teacher, MASK), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [*LOSSES, of_padded_scores])
def test_gradient_by_finite_differences(loss: Loss) -> None:
    student, teacher = draw(B, S, 8, seed=1).requires_grad_(), draw(B, S, 8, seed=2)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, MASK), student)


def test_gradient_of_the_prediction_loss_by_finite_differences() -> None:
    teacher = draw(3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, teacher, 2.0), draw(3, 4).requires_grad_())


def test_sixteen_bit_inputs_are_computed_in_32_bits() -> None:
    student, teacher = draw(B, S, 8, seed=1), draw(B, S, 8, seed=2)
    narrow = hidden_mse(student.bfloat16(), teacher.half(), MASK)
    assert narrow.dtype == torch.float32
    expected = hidden_mse(student.bfloat16().double(), teacher.half().double(), MASK)
    assert narrow.item() == pytest.approx(expected.item(), rel=1e-6)
