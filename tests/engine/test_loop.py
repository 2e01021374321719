"""The one loop, with an objective so small that the same can be written out by hand."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_experiment
from torch import nn

from refbert_dist.config import Experiment, OptimConfig
from refbert_dist.data.sampler import Sampler
from refbert_dist.engine.agreement import CHECK_STEPS
from refbert_dist.engine.checkpoint import complete_checkpoints
from refbert_dist.engine.distributed import parameter_groups, process_group
from refbert_dist.engine.loop import Job, learning_rate, seed_micro_batch, train
from refbert_dist.engine.stop import watching_signals
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, StoppedError, UserError
from refbert_dist.tracking.metrics import read_metrics

CPU = torch.device("cpu")
SAMPLES = 30
ALONE = World(0, 1, 0)

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="compared with the CPU's numbers")


# -- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "steps", "expected"),
    [
        ({"warmup_fraction": 0.2}, 10, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"warmup_fraction": 0.0}, 4, [1, 0.75, 0.5, 0.25]),
        ({"warmup_fraction": 0.5, "schedule": "constant"}, 4, [0.5, 1, 1, 1]),
        ({"warmup_fraction": 1.0}, 4, [0.25, 0.5, 0.75, 1]),
        ({"warmup_fraction": 0.1}, 1, [1]),
    ],
)
def test_the_rate_rises_and_falls(fields: dict[str, Any], steps: int, expected: list[float]) -> None:
    optim = OptimConfig(steps=steps, learning_rate=2.0, **fields)
    assert [learning_rate(optim, step, steps) for step in range(steps)] == pytest.approx([2 * x for x in expected])


# -- randomness ------------------------------------------------------------------------------------------------------


def noise(step: int, index: int, seed: int = 1) -> tuple[float, ...]:
    seed_micro_batch(seed, step, index)
    return tuple(torch.rand(4).tolist())


def test_every_micro_batch_has_a_stream_of_its_own() -> None:
    places = [(step, index, seed) for step in range(6) for index in range(6) for seed in (1, 2)]
    assert len({noise(*place) for place in places}) == len(places)
    assert noise(3, 4) == noise(3, 4)
    # Digits run together, as in the sum or the joined text of the numbers, would make these two the same.
    assert noise(1, 11) != noise(11, 1)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_stream_belongs_to_the_micro_batch_and_not_to_the_process(world_size: int) -> None:
    batch = Sampler(np.arange(40) + 3, 23, 4, seed=1).batch(2)

    def streams(size: int) -> dict[tuple[int, ...], tuple[float, ...]]:
        passes = Sampler(np.arange(40) + 3, 23, 4, seed=1).passes(size)
        return {
            tuple(micro.samples.tolist()): noise(2, micro.index)
            for rank in range(size)
            for micro in batch.share(rank, size, passes)
            if not micro.filler
        }

    assert streams(world_size) == streams(1)


# -- training --------------------------------------------------------------------------------------------------------


class Regression(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, inputs: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        error = self.layers(inputs)[:, 0] - wanted
        if not inputs.any(1).all():  # finite, with a gradient that is not
            error = error + 0.0 * (error - error.detach()).sqrt()
        return {"square": (scale * error.square()).sum(), "absolute": error.abs().sum()}


class Toy:
    """Two terms with weights and denominators of their own, over samples of different lengths."""

    def __init__(self, dropout: float = 0.0, poison_from: int | None = None, poisoned: int = -1) -> None:
        self.module = Regression(dropout)
        self.weights = {"square": 0.7, "absolute": 0.2}
        rng = np.random.default_rng(0)
        self.lengths = rng.integers(3, 20, size=SAMPLES)
        self.inputs = torch.from_numpy(rng.normal(size=(SAMPLES, 6)).astype(np.float32))
        self.wanted = torch.from_numpy(rng.normal(size=SAMPLES).astype(np.float32))
        self.calls = 0
        self.terminate_at: int | None = None
        self.poison_from = poison_from
        self.poisoned = poisoned

    def batch(self, samples: np.ndarray, device: torch.device) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
        scale = torch.from_numpy(self.lengths[samples].astype(np.float32))
        if self.poison_from is not None and self.calls >= self.poison_from:
            scale = scale * torch.nan
        scale[torch.from_numpy(samples == self.poisoned)] = torch.inf
        return {
            "inputs": self.inputs[samples].to(device),
            "wanted": self.wanted[samples].to(device),
            "scale": scale.to(device),
        }

    def weights_at(self, fraction: float) -> dict[str, float]:
        return self.weights

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        return {"square": float(self.lengths[samples].sum()), "absolute": float(len(samples))}


def experiment(root: Path, *overrides: str) -> Experiment:
    return tiny_experiment(root, "task=null", f"run.dir={root / 'run'}", *overrides)


OPTIM = OptimConfig(steps=24, batch_size=13, learning_rate=0.02, weight_decay=0.1)


def run(root: Path, objective: Toy, *overrides: str, name: str = "toy", optim: OptimConfig = OPTIM) -> Any:
    exp = experiment(root, *overrides)
    torch.seed()  # nothing may depend on the random state that a process happens to have
    with process_group(60) as world:
        return train(objective, Job("stage", name, optim, exp.run.dir, exp.seed), exp, world)


def by_hand(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Whole batches, no micro-batches, no DeepSpeed."""
    toy = Toy()
    optimizer = torch.optim.AdamW(parameter_groups(toy.module, OPTIM.weight_decay), lr=1.0)
    sampler = Sampler(toy.lengths, 13, 4, seed)
    losses = []
    for step in range(24):
        samples = sampler.batch(step).samples
        error = toy.module.layers(toy.inputs[samples])[:, 0] - toy.wanted[samples]
        scale = torch.from_numpy(toy.lengths[samples].astype(np.float32))
        loss = 0.7 * (scale * error.square()).sum() / scale.sum() + 0.2 * error.abs().mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, 24)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(toy.module.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss))
    return losses, toy.module.state_dict()


@needs_cpu
@pytest.mark.parametrize("micro", [4, 13, 5])
def test_the_loop_is_adamw_on_the_mean_over_the_batch(tmp_path: Path, micro: int) -> None:
    toy = Toy()
    state = run(tmp_path, toy, f"engine.micro_batch_size={micro}", "engine.gradient_clipping=0.5")
    losses, weights = by_hand(seed=1)
    records = list(read_metrics(tmp_path / "run"))
    assert [record["step"] for record in records] == list(range(1, 25))
    assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-4)
    for record in records:
        assert record["loss"] == pytest.approx(0.7 * record["square"] + 0.2 * record["absolute"], rel=1e-6)
        assert record["learning_rate"] == learning_rate(OPTIM, record["step"] - 1, 24)
        assert (record["stage"], record["job"]) == ("stage", "toy")
    # 30 samples in batches of 13: 13, 13 and 4 an epoch.
    assert (state.step, state.samples) == (24, 8 * 30) == (records[-1]["step"], records[-1]["samples"])
    for name, tensor in toy.module.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5)


@needs_cpu
def test_records_between_are_means(tmp_path: Path) -> None:
    run(tmp_path, Toy(), "tracking.log_steps=10", "engine.gradient_clipping=0.5")
    losses, _ = by_hand(seed=1)
    records = list(read_metrics(tmp_path / "run"))
    assert [record["step"] for record in records] == [10, 20, 24]
    expected = [np.mean(losses[:10]), np.mean(losses[10:20]), np.mean(losses[20:])]
    assert [record["loss"] for record in records] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_signal_saves_and_the_next_start_ends_as_if_there_had_been_none(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"engine.zero_stage={zero_stage}", "tracking.log_steps=1")
    whole, stopped, continued = Toy(dropout=0.3), Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "whole", whole, *settings)
    stopped.terminate_at = 6  # in the second step: each has 4 passes
    with pytest.raises(StoppedError, match="of 24; run the same command again") as error:
        run(tmp_path / "cut", stopped, *settings)
    step = int(re.search(r"stopped at step (\d+)", str(error.value))[1])
    assert 1 <= step <= 1 + CHECK_STEPS
    checkpoints = tmp_path / "cut" / "run" / "checkpoints" / "toy"
    assert [path.name for path in complete_checkpoints(checkpoints)] == [f"step-{step}"]
    state = run(tmp_path / "cut", continued, *settings)
    assert state.step == 24 and continued.calls == (24 - step) * 4
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, continued.module.state_dict()[name])
    curves = [
        [(record["step"], record["loss"]) for record in read_metrics(tmp_path / place / "run")]
        for place in ("whole", "cut")
    ]
    assert curves[0] == curves[1]


def test_a_stop_that_came_too_late_for_one_job_stops_the_next(tmp_path: Path) -> None:
    first, second = Toy(), Toy()
    first.terminate_at = 24 * 4  # in the last pass of all
    with watching_signals():
        assert run(tmp_path / "first", first).step == 24
        with pytest.raises(StoppedError, match="stopped at step 1 of 24"):
            run(tmp_path / "second", second)


def test_a_finished_job_trains_no_further(tmp_path: Path) -> None:
    first, again = Toy(), Toy()
    assert run(tmp_path, first).step == 24
    state = run(tmp_path, again)
    assert again.calls == 0 and state.step == 24
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor.cpu(), again.module.state_dict()[name].cpu())


def test_a_job_can_end_before_its_schedule_and_go_on_later(tmp_path: Path) -> None:
    whole, part, rest = Toy(dropout=0.3), Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "whole", whole)
    assert run(tmp_path / "cut", part, optim=OPTIM.model_copy(update={"until": 0.25})).step == 6
    assert run(tmp_path / "cut", rest).step == 24 and rest.calls == 18 * 4
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, rest.module.state_dict()[name])
    with pytest.raises(UserError, match=r"toy is to end at step 12, but its checkpoint .* step 24; .* at least 1\.000"):
        run(tmp_path / "cut", Toy(), optim=OPTIM.model_copy(update={"until": 0.5}))


def test_checkpoints_come_in_time_and_the_last_one_stays(tmp_path: Path) -> None:
    def steps() -> list[str]:
        return [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints" / "toy")]

    settings = ("engine.checkpoint_steps=6", "engine.keep_checkpoints=2")
    calls_a_step = -(-13 // tiny_experiment(tmp_path).engine.micro_batch_size)
    with pytest.raises(RefusedError):
        run(tmp_path, Toy(poison_from=20 * calls_a_step), *settings, "engine.max_skipped_steps=1")
    assert steps() == ["step-12", "step-18"]
    run(tmp_path, Toy(), *settings, "tracking.log_steps=1")
    assert steps() == ["step-24"]


# -- speed -----------------------------------------------------------------------------------------------------------


def test_a_profile_is_left_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, profiled = Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "plain", plain)
    assert not (tmp_path / "plain" / "run" / "profile").exists()
    with caplog.at_level("INFO"):
        run(tmp_path / "profiled", profiled, "engine.profile=true")
    text = (tmp_path / "profiled" / "run" / "profile" / "toy.txt").read_text()
    assert text.startswith("toy: 18 steps of ")  # of 24, the first 6 warm up
    shares = dict(re.findall(r"^  (\w+) +(\d+\.\d)%", text, re.MULTILINE))
    assert shares.keys() == {"data", "forward", "backward", "update", "other"}
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.5)
    assert any(re.fullmatch(r"toy: [\d.e+]+ steps/s, [\d,]+ tokens/s; .* waited for data", m) for m in caplog.messages)
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(tensor, profiled.module.state_dict()[name])


def test_a_compiled_module_learns_the_same(tmp_path: Path) -> None:
    plain, compiled = Toy(dropout=0.3), Toy(dropout=0.3)
    run(tmp_path / "plain", plain)
    run(tmp_path / "compiled", compiled, "engine.compile=true", "engine.timeout_s=600")
    assert compiled.module._compiled_call_impl is not None
    for name, tensor in plain.module.state_dict().items():
        torch.testing.assert_close(compiled.module.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


# -- what is not finite ----------------------------------------------------------------------------------------------


def without(sample: int) -> tuple[list[int], dict[str, torch.Tensor]]:
    """By hand: the steps that do not see ``sample``, and the weights after them alone."""
    toy = Toy()
    optimizer = torch.optim.AdamW(parameter_groups(toy.module, OPTIM.weight_decay), lr=1.0)
    sampler = Sampler(toy.lengths, 13, 4, seed=1)
    taken = [step for step in range(24) if sample not in sampler.batch(step).samples]
    for step in taken:
        inputs = toy.batch(sampler.batch(step).samples, CPU)
        terms, denominators = toy.module(**inputs), toy.denominators(sampler.batch(step).samples)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, 24)
        optimizer.zero_grad()
        sum(weight * terms[name] / denominators[name] for name, weight in toy.weights.items()).backward()
        nn.utils.clip_grad_norm_(toy.module.parameters(), 1.0)
        optimizer.step()
    return [step + 1 for step in taken], toy.module.state_dict()


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_with_what_is_not_finite_is_skipped(
    tmp_path: Path, zero_stage: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy(poisoned=5 if kind == "loss" else -1)
    if kind == "gradient":
        toy.inputs[5] = 0.0
    settings = ("engine.micro_batch_size=4", "tracking.log_steps=1", f"engine.zero_stage={zero_stage}")
    with caplog.at_level("WARNING"):
        state = run(tmp_path, toy, *settings)
    taken, weights = without(5)
    records = list(read_metrics(tmp_path / "run"))
    assert len(records) == 24 and 8 <= len(taken) < 24
    assert [record["step"] for record in records if record["gradient_norm"] is not None] == taken
    assert [record["step"] for record in records if record["loss"] is not None] == taken
    assert (state.step, state.skipped) == (24, 24 - len(taken))
    for name, tensor in toy.module.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), weights[name], rtol=1e-3, atol=1e-5)
    skipped = [message for message in caplog.messages if "skipped 1 step(s)" in message]
    assert len(skipped) == 24 - len(taken)
    for message in skipped:
        if kind == "loss":
            assert len(named(message)) <= 4 and 5 in named(message)
        else:
            assert message.endswith("a gradient was not finite, though every loss was")


def named(message: str) -> list[int]:
    (found,) = re.findall(r"micro-batches of these samples: ([\d, ]+\d)", message)
    return [int(number) for number in found.split(", ")]


def test_skipped_steps_are_no_part_of_a_mean(tmp_path: Path) -> None:
    settings = ("engine.micro_batch_size=4", "engine.zero_stage=0")
    run(tmp_path / "single", Toy(poisoned=5), *settings, "tracking.log_steps=1")
    run(tmp_path / "mean", Toy(poisoned=5), *settings, "tracking.log_steps=12")
    single = [record["loss"] for record in read_metrics(tmp_path / "single" / "run")]
    expected = [np.mean([loss for loss in part if loss is not None]) for part in (single[:12], single[12:])]
    assert [record["loss"] for record in read_metrics(tmp_path / "mean" / "run")] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("log_steps", "ended_at"), [(1, 5), (100, 6)])
def test_too_many_skipped_steps_in_a_row_end_the_job(tmp_path: Path, log_steps: int, ended_at: int) -> None:
    settings = ("engine.max_skipped_steps=3", f"tracking.log_steps={log_steps}", "engine.checkpoint_steps=2")
    words = rf"toy was ended at step {ended_at}, because it had to skip [34] steps in a row: .* samples: .* rate 0\.02"
    with pytest.raises(RefusedError, match=words):
        run(tmp_path, Toy(poison_from=9), *settings)  # from the third step
    checkpoints = complete_checkpoints(tmp_path / "run" / "checkpoints" / "toy")
    assert [path.name for path in checkpoints] == ["step-2", "step-4"]
    before, after = (load_file(path / "model.safetensors") for path in checkpoints)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_fewer_samples_than_processes_is_refused(tmp_path: Path) -> None:
    exp = experiment(tmp_path)
    with pytest.raises(UserError, match=r"launch\.processes is 31 but toy has 30 sample\(s\).*at most 30"):
        train(Toy(), Job("stage", "toy", OPTIM, exp.run.dir, exp.seed), exp, World(0, 31, 0))
