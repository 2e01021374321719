"""A whole search with a real Ray: stopped, killed, crashed into, and at its end as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from tiny import tiny_values

from refbert_dist.artifacts import read_json
from tune.records import Trial, read_trials

pytestmark = [pytest.mark.dist, pytest.mark.faults]

PATIENCE_S = 120.0
TRIALS = 4
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
GENERAL_STEPS = 150
"""Long enough to be disturbed."""


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s in vain for {what}"
        time.sleep(0.1)
    return found


class Disturbed:
    """A search of four trials, two at a time, and everything that happened to it."""

    def __init__(self, root: Path) -> None:
        self.run_dir = root / "run"
        values = tiny_values(root)
        # Relative, as people write them, wherever Ray's workers may be.
        values["cache"]["dir"], values["teacher"]["model"], values["task"]["path"] = "cache", "./teacher", "task"
        self.root = root
        values["tracking"] = {"log_steps": 1}
        values["engine"]["checkpoint_steps"] = 10
        values["distill"]["general"]["steps"] = GENERAL_STEPS
        search = {
            "experiment": values,
            "space": {"student.layers": [1, 2], "references.count": [0, 2]},
            "objectives": ["score", "parameters"],
            "look": {"trials": TRIALS, "algorithm": "grid"},
            "halving": {"rungs": [0.5], "reduction": 2},
            "trial": {"concurrent": 2},
        }
        self.file = root / "search.yaml"
        self.file.write_text(yaml.safe_dump(search))
        self.log = root / "log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "launchers.cli", "tune", str(self.file), *options, "--on", "in-process"]
        # Trials that run side by side on two cores would only wait for each other's threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        for name in RENDEZVOUS:  # A job in this process may have left them, with a port that it still holds.
            environment.pop(name, None)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                argv, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.processes.append(process)
        return process

    def trials(self) -> list[Trial]:
        return read_trials(self.run_dir)

    def checkpoints(self, number: int) -> list[str]:
        folder = self.run_dir / "trials" / f"{number:04d}" / "checkpoints"
        return sorted(path.parent.name for path in folder.glob("general-*/step-*/COMPLETE"))

    def steps(self, number: int) -> list[int]:
        """Of a trial's general stage, in the order in which they were done."""
        lines = (self.run_dir / "trials" / f"{number:04d}" / "metrics.jsonl").read_text().splitlines()
        return [record["step"] for record in map(json.loads, lines) if record["stage"] == "distill-general"]

    def workers(self) -> dict[int, int]:
        """Number of a trial -> id of its process."""
        found = subprocess.run(["pgrep", "-af", rf"tune\.trial {self.run_dir} "], capture_output=True, text=True).stdout
        lines = [line.split() for line in found.splitlines() if "TIE" not in line]
        return {int(words[-2]): int(words[0]) for words in lines}

    def everything(self) -> str:
        """Processes that have to do with this search."""
        return subprocess.run(["pgrep", "-af", str(self.run_dir)], capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    search = Disturbed(tmp_path_factory.mktemp("search"))
    yield search
    for process in search.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def ended(disturbed: Disturbed) -> Disturbed:
    """Stopped by a signal; then killed; then one of its trials was; then done."""
    first = disturbed.start()
    # Of both: the second trial's process may come up much later than the first's.
    until(lambda: disturbed.checkpoints(1) and disturbed.checkpoints(2), "a checkpoint of either trial")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 75, disturbed.log.read_text()
    disturbed.stopped_at = {number: disturbed.steps(number) for number in (1, 2)}  # type: ignore[attr-defined]
    disturbed.saved = {number: disturbed.checkpoints(number) for number in (1, 2)}  # type: ignore[attr-defined]

    second = disturbed.start("--resume")
    until(lambda: any(trial.rungs for trial in disturbed.trials()), "a rung")
    disturbed.before = disturbed.trials()  # type: ignore[attr-defined]
    second.kill()
    second.wait()
    until(lambda: not disturbed.workers(), "the end of the trials")

    third = disturbed.start("--resume")
    number, process = until(lambda: sorted(disturbed.workers().items())[-1:], "a trial")[0]
    os.kill(process, signal.SIGKILL)
    disturbed.killed = number  # type: ignore[attr-defined]
    assert third.wait(300) == 0, disturbed.log.read_text()
    return disturbed


def test_all_trials_come_to_their_end(ended: Disturbed) -> None:
    trials = ended.trials()
    assert [trial.point for trial in trials] == [
        {"references.count": count, "student.layers": layers} for count in (0, 2) for layers in (1, 2)
    ]
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    assert trials[0].state == "finished", "halving keeps the first that reaches a rung"
    for trial in trials:
        assert [rung.share for rung in trial.rungs] == ([0.5, 1.0] if trial.state == "finished" else [0.5])
    for before, after in zip(ended.before, trials, strict=False):  # type: ignore[attr-defined]
        assert after.rungs[: len(before.rungs)] == before.rungs, "what was scored is not scored again"


def test_a_trial_goes_on_from_where_it_was(ended: Disturbed) -> None:
    """No step of its general stage was lost when it was told to stop, and few when it was killed."""
    for number, stopped_at in ended.stopped_at.items():  # type: ignore[attr-defined]
        assert f"step-{len(stopped_at)}" in ended.saved[number], "it saved when it was told to stop"  # type: ignore[attr-defined]
        steps = ended.steps(number)
        # At a rung a trial may have come to its end, so that no step follows.
        assert steps[: len(stopped_at) + 1] == list(range(1, min(len(stopped_at) + 1, max(steps)) + 1))
        assert len(steps) < len(set(steps)) + 25
    assert sorted(set(ended.steps(1))) == list(range(1, GENERAL_STEPS + 1))


def test_no_trial_runs_the_teacher(ended: Disturbed) -> None:
    assert sum(trial.figures["teacher_samples"] for trial in ended.trials()) == 0
    assert read_json(ended.run_dir / "stages" / "cache-general.json")["result"]["samples"] > 0
    for trial in ended.trials():
        stages = {path.stem for path in (ended.run_dir / "trials" / trial.name).glob("**/stages/*.json")}
        assert stages == {"distill-general", "distill-task", "evaluate"}


def test_results_and_table(ended: Disturbed) -> None:
    rows = read_json(ended.run_dir / "results.json")
    assert {row["trial"] for row in rows} == {trial.name for trial in ended.trials()}
    assert all(row["n"] == 12 for row in rows), "a fifth of the 60 training rows"
    front = {row["trial"] for row in rows if row["on_front"]}
    log = ended.log.read_text()
    table = log[log.index("Pareto front of accuracy, parameters") :]
    assert all(f" {name} " in table for name in front)
    assert "ran the teacher on 0 samples" in table


def test_nothing_is_left_over(ended: Disturbed) -> None:
    assert ended.everything() == ""
    assert not list(ended.run_dir.glob(".ray*")) and not (ended.run_dir / ".stop").exists()


def test_mlflow_has_every_trial_once_below_the_search(ended: Disturbed) -> None:
    client = MlflowClient(f"sqlite:///{ended.run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("refbert")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    trials = [run for run in below if run.info.run_name.startswith("000")]
    assert sorted(run.info.run_name for run in trials) == [trial.name for trial in ended.trials()]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["student.layers"] for run in trials} == {"1", "2"}


def test_a_second_time_nothing_is_to_do(ended: Disturbed) -> None:
    before = ended.log.read_text()
    assert ended.start().wait(PATIENCE_S) == 0
    said = ended.log.read_text()[len(before) :]
    assert "nothing to do" in said and "Pareto front" in said


def test_the_winner_is_trained_on_all_rows_and_scored_on_dev(ended: Disturbed) -> None:
    assert ended.start("--export-best", "--pick", "parameters").wait(PATIENCE_S) == 0, ended.log.read_text()
    best = yaml.safe_load((ended.run_dir / "best" / "experiment.yaml").read_text())
    smallest = min(ended.trials(), key=lambda trial: trial.figures.get("parameters", 1e9))
    assert best["student"]["layers"] == smallest.point["student.layers"]
    assert best["task"]["held_out"] == 0
    assert all(row["n"] == 24 for row in read_json(ended.run_dir / "best" / "results.json"))
    assert (ended.run_dir / "best" / "export" / "config.json").exists()
    assert not (ended.run_dir / "best" / "stages" / "distill-general.json").exists(), "it was trained before"


def test_what_would_wait_for_ever_is_refused(ended: Disturbed) -> None:
    before = ended.log.read_text()
    assert ended.start("trial.cpus=64", "look.trials=5").wait(PATIENCE_S) == 2
    assert "a trial asks for 64 CPUs" in ended.log.read_text()[len(before) :]
