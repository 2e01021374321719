import copy

import pytest
import torch

from refbert_dist.engine.guarded_adamw import GuardedAdamW


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]


def give_gradients(own: list[torch.nn.Parameter], seed: int, bad: float | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in own:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    if bad is not None:
        own[0].grad[1, 2] = bad  # type: ignore[index]


@pytest.mark.parametrize("largest_norm", [0.0, 0.5, 100.0])
def test_it_is_adamw_with_clipped_gradients(largest_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    guarded = GuardedAdamW([{"params": ours[:1]}, {"params": ours[1:], "weight_decay": 0.0}], 0.1, largest_norm)
    plain = torch.optim.AdamW([{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}], lr=0.1)
    for seed in range(5):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        norm = torch.nn.utils.clip_grad_norm_(theirs, largest_norm or float("inf"))
        guarded.step()
        plain.step()
        assert guarded.norm.item() == pytest.approx(norm.item(), rel=1e-6) and not guarded.found_inf
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("largest_norm", [0.0, 0.5])
def test_a_step_with_a_gradient_that_is_not_finite_leaves_everything_as_it_is(bad: float, largest_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    guarded, other = GuardedAdamW(ours, 0.1, largest_norm), GuardedAdamW(theirs, 0.1, largest_norm)
    for seed in range(3):
        for own, optimizer in ((ours, guarded), (theirs, other)):
            give_gradients(own, seed)
            optimizer.step()
    before = copy.deepcopy(guarded.state_dict()["state"])
    weights = copy.deepcopy(ours)
    for _ in range(2):
        give_gradients(ours, 99, bad)
        guarded.step()
        assert guarded.found_inf and not guarded.norm.isfinite()
    assert all(torch.equal(own, kept) for own, kept in zip(ours, weights, strict=True))
    for index, state in guarded.state_dict()["state"].items():
        assert all(torch.equal(state[name], before[index][name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    for own, optimizer in ((ours, guarded), (theirs, other)):
        give_gradients(own, 7)
        optimizer.step()
    assert not guarded.found_inf
    assert all(torch.equal(own, kept) for own, kept in zip(ours, theirs, strict=True))
