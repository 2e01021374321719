"""The weights that are kept where a job chooses among those that it passes through."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_loop import OPTIM, Toy, experiment

from refbert_dist.engine.checkpoint import complete_checkpoints
from refbert_dist.engine.distributed import process_group
from refbert_dist.engine.loop import Job, train
from refbert_dist.errors import RefusedError, StoppedError

SCORES = {5: 0.1, 10: 0.7, 15: 0.7, 20: 0.3, 24: 0.6}
BEST = 10


class Scripted:
    """Gives the scores of a list, and remembers what the weights were: the output on what is always the same input."""

    steps = 5

    def __init__(self, first: int = 0) -> None:
        self.places = [step for step in SCORES if step > first]
        self.seen: dict[int, torch.Tensor] = {}

    def score(self, engine: Any) -> float:
        step = self.places[len(self.seen)]
        engine.eval()
        with torch.no_grad():
            self.seen[step] = answers_of(engine)
        engine.train()
        return SCORES[step]


def answers_of(module: Any) -> torch.Tensor:
    device = next(module.parameters()).device
    inputs = torch.linspace(-1, 1, 24).view(4, 6).to(device)
    return torch.as_tensor(module(inputs, torch.zeros(4, device=device), torch.ones(4, device=device))["square"]).cpu()


def run(root: Path, toy: Toy, choice: Scripted | None, *overrides: str) -> Any:
    exp = experiment(root, *overrides)
    with process_group(60) as world:
        return train(toy, Job("stage", "toy", OPTIM, exp.run.dir, exp.seed), exp, world, choice)


def same(one: Toy, other: Toy) -> bool:
    wanted = other.module.state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in one.module.state_dict().items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_first_of_the_best_is_left_and_looking_changes_nothing(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"engine.zero_stage={zero_stage}", "engine.checkpoint_steps=7")
    chosen, plain, choice = Toy(dropout=0.3), Toy(dropout=0.3), Scripted()
    state = run(tmp_path / "chosen", chosen, choice, *settings)
    assert run(tmp_path / "plain", plain, None, *settings).best_step == 0
    assert list(choice.seen) == list(SCORES)
    assert (state.step, state.best_step, state.best_score) == (24, BEST, 0.7)
    torch.testing.assert_close(answers_of(chosen.module.eval()), choice.seen[BEST])
    assert not same(chosen, plain)
    ends = [
        complete_checkpoints(tmp_path / name / "run" / "checkpoints" / "toy")[-1] / "model.safetensors"
        for name in ("chosen", "plain")
    ]
    with safe_open(ends[0], "pt") as one, safe_open(ends[1], "pt") as other:
        assert all(torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in other.keys())  # noqa: SIM118
    assert (ends[0].parent / "best.safetensors").exists() and not (ends[1].parent / "best.safetensors").exists()


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("stop_at", [3, 12])
def test_a_job_that_is_stopped_chooses_as_if_it_had_not_been(tmp_path: Path, zero_stage: int, stop_at: int) -> None:
    """Stopped before its first look, and after the best one."""
    settings = (f"engine.zero_stage={zero_stage}", "engine.checkpoint_steps=1")
    whole, stopped, continued = Toy(dropout=0.3), Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "whole", whole, Scripted(), *settings)
    stopped.terminate_at = stop_at * 4  # each step has 4 passes
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", stopped, Scripted(), *settings)
    (newest,) = complete_checkpoints(tmp_path / "cut" / "run" / "checkpoints" / "toy")[-1:]
    step = int(newest.name.removeprefix("step-"))
    assert stop_at <= step < 24
    state = run(tmp_path / "cut", continued, Scripted(step), *settings)
    assert (state.step, state.best_step) == (24, BEST)
    assert same(continued, whole)


def test_a_kill_after_the_best_was_seen_and_before_it_was_saved_loses_nothing(tmp_path: Path) -> None:
    """The next start looks again where the last checkpoint did not know yet."""
    settings = ("engine.checkpoint_steps=8", "engine.max_skipped_steps=1")
    whole, killed, continued = Toy(dropout=0.3), Toy(dropout=0.3, poison_from=12 * 4 + 1), Toy(dropout=0.3)
    run(tmp_path / "whole", whole, Scripted(), *settings)
    first = Scripted()
    with pytest.raises(RefusedError):
        run(tmp_path / "cut", killed, first, *settings)
    assert BEST in first.seen
    again = Scripted(8)
    assert run(tmp_path / "cut", continued, again, *settings).best_step == BEST
    assert torch.equal(again.seen[BEST], first.seen[BEST])
    assert same(continued, whole)


def test_a_finished_job_gives_the_best_weights_again(tmp_path: Path) -> None:
    whole, again = Toy(), Toy()
    run(tmp_path, whole, Scripted())
    assert run(tmp_path, again, Scripted()).best_step == BEST and again.calls == 0
    assert same(again, whole)
