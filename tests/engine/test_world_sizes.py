"""The result of a training job does not depend on how many processes compute it, nor on whether it was interrupted."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.cache.models import general_student
from refbert_dist.config import Experiment, load_experiment, to_yaml
from refbert_dist.engine.processes import run_processes, worker_environment
from refbert_dist.engine.world import World, free_port
from refbert_dist.errors import RefusedError
from refbert_dist.tracking.metrics import read_metrics

WORKER = Path(__file__).with_name("distill_worker.py")
JOB = "general-refbert"
STEPS = 50

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, neighbours and teacher states, made once for all runs of this module."""
    root = tmp_path_factory.mktemp("worlds")
    pipeline.run(tiny_experiment(root, "task=null"), ("retrieve", "cache-general"))
    return root


Train = Callable[..., tuple[list[float], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def train(root: Path) -> Train:
    """Train in a fresh run directory; gives the loss of every step and the final weights."""

    def start(processes: int, *overrides: str, wrong: str = "") -> tuple[list[float], dict[str, torch.Tensor]]:
        run_dir = root / f"run-{processes}-{'-'.join(overrides).replace('/', '_')}-{wrong}"
        prepared(root, run_dir, *overrides)
        argv = [sys.executable, str(WORKER), str(run_dir), *([wrong] if wrong else [])]
        run_processes(argv, count=processes, threads=1, run_dir=run_dir, stage="work")
        return outcome(run_dir)

    return start


def prepared(root: Path, run_dir: Path, *overrides: str) -> Experiment:
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
    if not exp.cache.dir.exists():  # a cache of its own: students of the general stage are shared within one
        shutil.copytree(root / "cache", exp.cache.dir)
    (run_dir / "experiment.yaml").write_text(to_yaml(exp))
    return exp


def outcome(run_dir: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [record["loss"] for record in read_metrics(run_dir, latest=True) if record["job"] == JOB]
    return losses, load_file(model_of(run_dir) / "model.safetensors")


def model_of(run_dir: Path) -> Path:
    return general_student(load_experiment(run_dir / "experiment.yaml"), "refbert")


@pytest.fixture(scope="module")
def alone(train: Train) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses, weights = train(1)
    assert len(losses) == STEPS
    assert losses[-1] < 0.9 * losses[0], "the job must learn, or equal curves would say little"
    return losses, weights


def largest_gap(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("processes", "overrides"), [(2, ()), (3, ()), (1, ("engine.zero_stage=1",)), (2, ("engine.zero_stage=1",))]
)
def test_the_loss_curve_is_that_of_one_process(
    train: Train, alone: tuple[list[float], dict[str, torch.Tensor]], processes: int, overrides: tuple[str, ...]
) -> None:
    losses, _ = train(processes, *overrides)
    assert largest_gap(losses, alone[0]) <= 1e-5


@pytest.mark.parametrize("wrong", ["local", "none"])
def test_a_wrong_reduction_is_seen(
    train: Train, alone: tuple[list[float], dict[str, torch.Tensor]], wrong: str
) -> None:
    losses, _ = train(2, wrong=wrong)
    assert largest_gap(losses, alone[0]) > 1e-4


@pytest.mark.faults
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    root: Path, alone: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    run_dir = root / "killed"
    prepared(root, run_dir, "engine.checkpoint_steps=7")
    environment = {**os.environ, **worker_environment(World(0, 1, 0), 1, free_port(), threads=1)}
    command = [sys.executable, str(WORKER), str(run_dir)]
    checkpoints = run_dir / "checkpoints" / JOB
    for step in (7, 21):  # killed twice, at two places
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (checkpoints / f"step-{step}" / "COMPLETE").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not model_of(run_dir).exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    losses, weights = outcome(run_dir)
    assert all(torch.equal(weights[name], tensor) for name, tensor in alone[1].items())
    assert losses == alone[0]


def test_it_continues_with_other_processes_and_another_zero_stage(
    root: Path, alone: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    run_dir = root / "moved"
    for stop_at, processes, stage in ((20, 2, 1), (35, 1, 0), (None, 3, 1)):
        prepared(root, run_dir, f"engine.zero_stage={stage}", "engine.checkpoint_steps=5")
        argv = [sys.executable, str(WORKER), str(run_dir), *([f"die:{stop_at}"] if stop_at else [])]
        with pytest.raises(RefusedError) if stop_at else contextlib.nullcontext():
            run_processes(argv, count=processes, threads=1, run_dir=run_dir, stage="work")
    losses, weights = outcome(run_dir)
    assert largest_gap(losses, alone[0]) <= 1e-5
    for name, tensor in alone[1].items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-4)


def test_sigterm_saves_and_asks_to_be_run_again(root: Path) -> None:
    run_dir = root / "stopped"
    prepared(root, run_dir, "distill.general.steps=100000")
    environment = {**os.environ, **worker_environment(World(0, 1, 0), 1, free_port(), threads=1)}
    command = [sys.executable, "-m", "refbert_dist.worker", "distill-general", str(run_dir / "experiment.yaml")]
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
    assert list((run_dir / "checkpoints" / JOB).glob("step-*/COMPLETE"))
