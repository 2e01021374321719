"""The result of a training job depends neither on how many processes compute it, nor on the ZeRO stage, nor on stops.

All runs of this module train the same student on the same data with dropout. They are dealt to four worlds, which are
started one after the other, so that a run can go on in the next with other settings.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
from distill_worker import work
from safetensors.torch import load_file
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.cache.models import general_student
from refbert_dist.config import Experiment, load_experiment, to_yaml
from refbert_dist.engine.checkpoint import complete_checkpoints
from refbert_dist.engine.processes import worker_environment
from refbert_dist.engine.world import World, free_port
from refbert_dist.errors import UserError
from refbert_dist.rundir import check_same_experiment
from refbert_dist.tracking.metrics import read_metrics

JOB = "general-refbert"
ALONE = World(0, 1, 0)
STEPS = 150

FP32 = 1e-6
"""Largest relative difference of a loss within the first 50 steps."""
FP32_END = 1e-3
"""The same at the end."""
BF16 = 2**-8
"""bf16 rounds by up to 2**-9 of a value, and the loss is a square: two runs whose roundings have nothing in common may
differ by twice that."""


@dataclass(frozen=True)
class Leg:
    """A run, or a part of one, in one world."""

    run: str
    faults: str = ""
    zero_stage: int = 0
    precision: str = "fp32"


POISONED = 7
"""A sample whose loss is not finite where a leg says so."""

LEGS = {
    4: [Leg("four", "stop:55"), Leg("moved", "stop:12", 3), Leg("mixed", "stop:4", 1, "bf16")],
    2: [
        Leg("two"),
        *(Leg(f"stage {stage}", "stop:20", stage) for stage in (1, 2, 3)),
        *(Leg(f"again {stage}", "stop:8", stage) for stage in (0, 1, 2, 3) for _ in range(2)),
        Leg("bf16", "stop:14", 2, "bf16"),
        *(Leg("again bf16", "stop:4", 2, "bf16") for _ in range(2)),
        *(Leg(f"poisoned {stage}", f"poison:{POISONED},stop:12", stage) for stage in (0, 1, 2, 3)),
        Leg("local", "local,stop:12"),
        Leg("none", "none,stop:12"),
        Leg("moved", "stop:12", 1),
        Leg("mixed", "stop:4", 3),
    ],
    1: [
        Leg("alone"),
        *(Leg(f"alone {stage}", "stop:15", stage) for stage in (1, 2, 3)),
        Leg("poisoned alone", f"poison:{POISONED},stop:12"),
        Leg("moved", "stop:12"),
        Leg("mixed", "stop:4", 0, "bf16"),
    ],
    3: [Leg("three", "stop:55"), Leg("moved", "", 2), Leg("mixed", "stop:4", 2, "bf16")],
}
"""What each number of processes does, in this order."""

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, neighbours and teacher states, made once for all runs of this module."""
    root = tmp_path_factory.mktemp("worlds")
    pipeline.run(tiny_experiment(root, "task=null"), ("retrieve", "cache-general"))
    return root


def prepared(root: Path, name: str, *overrides: str) -> Experiment:
    run_dir = root / name
    exp = tiny_experiment(
        root,
        "task=null",
        "systems=[refbert]",
        f"run.dir={run_dir}",
        f"cache.dir={run_dir / 'cache'}",
        f"distill.general={{steps: {STEPS}, batch_size: 24, learning_rate: 2.0e-3}}",
        *overrides,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    check_same_experiment(exp)
    if not exp.cache.dir.exists():  # a cache of its own: students of the general stage are shared within one
        shutil.copytree(root / "cache", exp.cache.dir)
    (run_dir / "experiment.yaml").write_text(to_yaml(exp))
    return exp


Losses = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def losses(root: Path) -> Losses:
    """Does all runs; gives the loss of every step of one."""
    for processes, legs in LEGS.items():
        for leg in legs:
            prepared(root, leg.run, f"engine.zero_stage={leg.zero_stage}", f"engine.precision={leg.precision}")
        forked.run(processes, root / f"{processes} processes", work, [f"{root / leg.run}={leg.faults}" for leg in legs])
    return lambda name: losses_of(root / name)


def losses_of(run_dir: Path) -> list[float]:
    records = list(read_metrics(run_dir, latest=True))
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def largest_difference(found: list[float], wanted: list[float], steps: int = 50) -> float:
    assert len(found) >= min(steps, 8)
    return max(abs(a - b) / abs(b) for a, b in zip(found[:steps], wanted[:steps], strict=False))


@pytest.mark.parametrize(
    "name", ["two", "three", "four", *(f"{kind} {n}" for kind in ("alone", "stage") for n in (1, 2, 3))]
)
def test_the_loss_curve_is_that_of_one_process(losses: Losses, name: str) -> None:
    alone, other = losses("alone"), losses(name)
    assert len(alone) == STEPS and alone[49] < 0.9 * alone[0], "it must learn, or equal curves would say little"
    assert largest_difference(other, alone) <= FP32
    assert largest_difference(other, alone, STEPS) <= FP32_END


@pytest.mark.parametrize("wrong", ["local", "none"])
def test_a_wrong_reduction_is_seen(losses: Losses, wrong: str) -> None:
    assert largest_difference(losses(wrong), losses("alone")) > 100 * FP32


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_all_skip_a_step_in_which_one_has_a_loss_that_is_not_finite(losses: Losses, root: Path, stage: int) -> None:
    alone, together = losses("poisoned alone"), losses(f"poisoned {stage}")
    both = min(len(alone), len(together))
    skipped = [step for step, loss in enumerate(alone[:both]) if loss is None]
    assert both >= 12 and 1 <= len(skipped) < both / 2
    assert [step for step, loss in enumerate(together[:both]) if loss is None] == skipped
    taken = [(a, b) for a, b in zip(together, alone, strict=False) if b is not None]
    assert max(abs(a - b) / abs(b) for a, b in taken) <= FP32
    assert f" {POISONED}" in (root / "2 processes" / "0.log").read_text()


def stretches(root: Path, name: str) -> list[dict[str, object]]:
    newest = complete_checkpoints(root / name / "checkpoints" / JOB)[-1]
    found: list[dict[str, object]] = json.loads((newest / "state.json").read_text())["stretches"]
    return found


def test_it_continues_with_other_processes_and_zero_stages(root: Path, losses: Losses) -> None:
    alone, moved = losses("alone"), losses("moved")
    assert largest_difference(moved, alone) <= FP32
    assert len(moved) == STEPS and largest_difference(moved, alone, STEPS) <= FP32_END
    found = [
        (stretch["processes"], stretch["zero_stage"], stretch["precision"]) for stretch in stretches(root, "moved")
    ]
    assert found == [(4, 3, "fp32"), (2, 1, "fp32"), (1, 0, "fp32"), (3, 2, "fp32")]
    weights = [load_file(model_of(root / name) / "model.safetensors") for name in ("moved", "alone")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-4)


def model_of(run_dir: Path) -> Path:
    return general_student(load_experiment(run_dir / "experiment.yaml"), "refbert")


@pytest.mark.parametrize(
    ("name", "whole"), [("again 0", "two"), *((f"again {n}", f"stage {n}") for n in (1, 2, 3)), ("again bf16", "bf16")]
)
def test_after_a_stop_the_same_settings_give_the_same_bits(root: Path, losses: Losses, name: str, whole: str) -> None:
    (stretch,) = {stretch["first_step"] for stretch in stretches(root, name)} - {0}
    stopped, uninterrupted = losses(name), losses(whole)
    both = min(len(stopped), len(uninterrupted))
    assert both >= int(stretch) + 4
    assert stopped[:both] == uninterrupted[:both]


def test_bf16_is_fp32_but_for_its_rounding(losses: Losses) -> None:
    difference = largest_difference(losses("bf16"), losses("alone"))
    assert FP32 < difference <= BF16


def test_precision_may_change_at_a_stop(root: Path, losses: Losses) -> None:
    assert largest_difference(losses("mixed"), losses("alone")) <= BF16
    found = stretches(root, "mixed")
    assert [(stretch["processes"], stretch["zero_stage"], stretch["precision"]) for stretch in found] == [
        (4, 1, "bf16"),
        (2, 3, "fp32"),
        (1, 0, "bf16"),
        (3, 2, "bf16"),
    ]
    first = [int(str(stretch["first_step"])) for stretch in found]
    assert first[0] == 0 and all(4 <= after - before <= 15 for before, after in itertools.pairwise(first))


def test_the_micro_batch_size_may_not_change(root: Path, losses: Losses) -> None:
    losses("alone")
    words = (
        r"engine\.micro_batch_size is 4 there and 8 here; choose another run\.dir, or set engine\.micro_batch_size back"
    )
    with pytest.raises(UserError, match=words):
        prepared(root, "alone", "engine.micro_batch_size=8")


@pytest.mark.faults
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(root: Path, losses: Losses) -> None:
    run_dir = prepared(root, "killed", "engine.checkpoint_steps=7").run.dir
    checkpoints = run_dir / "checkpoints" / JOB

    def start(fault: str) -> int | None:
        process = forked.start(ALONE, free_port(), root / "killed.log", work, [f"{run_dir}={fault}"])
        process.join()
        return process.exitcode

    assert start("tear:21") == -signal.SIGKILL
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-14", "step-7"]
    assert list(checkpoints.glob(".step-21.*.tmp/optimizer.safetensors")), "killed in the middle of writing"
    assert start("die:28") == -signal.SIGKILL
    assert [record["first_step"] for record in stretches(root, "killed")] == [0, 14]
    assert not model_of(run_dir).exists()
    assert start("") == 0
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{STEPS}"], "nothing that kills have left"
    assert losses_of(run_dir) == losses("alone")
    weights = [load_file(model_of(root / name) / "model.safetensors") for name in ("killed", "alone")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_sigterm_saves_and_asks_to_be_run_again(root: Path) -> None:
    run_dir = prepared(root, "stopped", "distill.general.steps=100000").run.dir
    command = [sys.executable, "-m", "refbert_dist.worker", "distill-general", str(run_dir / "experiment.yaml")]
    environment = {**os.environ, **worker_environment(ALONE, 1, free_port(), threads=1)}
    with (run_dir / "out.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, (run_dir / "out.log").read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 75
    report = json.loads((run_dir / "logs" / "distill-general-rank0.error.json").read_text())
    assert "run the same command again" in report["message"]
    assert complete_checkpoints(run_dir / "checkpoints" / JOB)
