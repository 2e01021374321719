"""BERT's Adam against its published update, in plain numpy."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_guarded_adamw import give_gradients, parameters
from test_loop import Toy, run

from refbert_dist.config import EngineConfig
from refbert_dist.engine.bert_adam import BertAdam
from refbert_dist.errors import StoppedError

RATES = (0.1, 0.05, 0.2, 0.1, 0.01)


def published(weights: list[np.ndarray], decays: list[float], largest_norm: float) -> list[np.ndarray]:
    """BertAdam of pytorch-pretrained-bert: each tensor by itself."""
    moments = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in weights]
    for seed, rate in enumerate(RATES):
        own = parameters()
        give_gradients(own, seed)
        for place, parameter in enumerate(own):
            gradient = parameter.grad.numpy().astype(np.float64)  # type: ignore[union-attr]
            norm = np.sqrt((gradient**2).sum())
            if largest_norm and norm > largest_norm:
                gradient = gradient * largest_norm / (norm + 1e-6)
            first, second = moments[place]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            moments[place] = first, second
            update = first / (np.sqrt(second) + 1e-6) + decays[place] * weights[place]
            weights[place] = weights[place] - rate * update
    return weights


@pytest.mark.parametrize("largest_norm", [0.0, 0.5, 2.0, 100.0])
def test_it_is_the_published_update(largest_norm: float) -> None:
    ours = parameters()
    expected = published([p.detach().numpy().astype(np.float64) for p in ours], [0.3, 0.0], largest_norm)
    groups = [{"params": ours[:1], "weight_decay": 0.3}, {"params": ours[1:], "weight_decay": 0.0}]
    optimizer = BertAdam(groups, 1.0, largest_norm)
    for seed, rate in enumerate(RATES):
        give_gradients(ours, seed)
        whole = torch.nn.utils.get_total_norm([p.grad for p in ours if p.grad is not None]).item()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert optimizer.norm.item() == pytest.approx(whole, rel=1e-5), "before clipping"
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for own, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(own.detach().numpy(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("largest_norm", [0.0, 0.5])
def test_a_step_that_is_not_finite_does_not_count(bad: float, largest_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, other = BertAdam(ours, 0.1, largest_norm), BertAdam(theirs, 0.1, largest_norm)
    for seed in range(3):
        for own, each in ((ours, optimizer), (theirs, other)):
            give_gradients(own, seed)
            each.step()
        before = copy.deepcopy(ours)
        give_gradients(ours, 99, bad)
        optimizer.step()
        assert optimizer.found_inf and not optimizer.norm.isfinite()
        assert all(torch.equal(own, kept) for own, kept in zip(ours, before, strict=True))
    assert all(torch.equal(own, kept) for own, kept in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_it_needs_whole_gradients(zero_stage: int) -> None:
    with pytest.raises(
        ValueError, match=rf"bert_adam' but engine\.zero_stage is {zero_stage}.*set engine\.zero_stage=0"
    ):
        EngineConfig(optimizer="bert_adam", zero_stage=zero_stage)  # type: ignore[arg-type]


def test_a_job_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Its moments and its count of steps are in the checkpoint, as those of the other optimizer."""
    whole, stopped, continued = Toy(dropout=0.3), Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "whole", whole, "engine.optimizer=bert_adam")
    stopped.terminate_at = 6 * 4
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", stopped, "engine.optimizer=bert_adam")
    assert run(tmp_path / "cut", continued, "engine.optimizer=bert_adam").step == 24
    corrected = Toy(dropout=0.3)
    run(tmp_path / "corrected", corrected)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, continued.module.state_dict()[name])
        assert not torch.equal(tensor, corrected.module.state_dict()[name])
