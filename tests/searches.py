"""Searches as they lie on disk, without the hours that trials take."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import tiny_values

from refbert_dist.artifacts import write_json, write_text
from refbert_dist.config import parse_model, to_yaml
from refbert_dist.rundir import EXPERIMENT, SEARCH, record_stage
from refbert_dist.tracking.metrics import MetricsLog
from tune.config import Search
from tune.front import objectives_of
from tune.records import Rung, State, Trial, save_trial, trial_folder
from tune.sampling import Sampler
from tune.space import shared_experiment

SPACE = {
    "student.layers": [1, 2, 3],
    "student.hidden": [24, 48, 96],
    "references.count": [0, 1, 2],
    "distill.general.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}


def search_of(
    root: Path,
    run_dir: Path,
    objectives: Sequence[str] = ("score", "latency_ms"),
    rungs: Sequence[float] = (),
) -> Search:
    """A search over the tiny experiment, whose teacher and task lie in ``root``."""
    experiment = tiny_values(root) | {"run": {"dir": str(run_dir)}}
    experiment["task"]["held_out"] = 0.2
    return parse_model(
        Search,
        {
            "experiment": experiment,
            "space": SPACE,
            "objectives": list(objectives),
            "limits": {"parameters": 900_000},
            "look": {"trials": 20, "algorithm": "random"},
            "halving": {"rungs": list(rungs)},
        },
    )


def fabricate(search: Search, states: Sequence[State]) -> Path:
    """A run directory with one trial in each of these states; figures follow from the points, as from a formula."""
    run_dir = search.experiment.run.dir
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / EXPERIMENT, to_yaml(shared_experiment(search)))
    write_text(run_dir / SEARCH, to_yaml(search))
    record_stage(run_dir, "cache-general", 12.5, 2, {"samples": 1370, "tokens": 64450, "bytes": 10**6, "shards": 5})
    record_stage(run_dir, "cache-task", 3.5, 2, {"samples": 480, "tokens": 19560, "bytes": 10**5, "shards": 2})
    with MetricsLog(run_dir) as metrics:
        for step in range(1, 5):
            metrics.write("finetune", "finetune", step, {"loss": 0.7 / step, "prediction": 0.7 / step})
    sampler = Sampler(search, objectives_of(search), (), lambda point: None)
    for number, state in enumerate(states, start=1):
        point = sampler.next(number)
        assert point is not None
        save_trial(run_dir, _trial(search, Trial(number, point, state)))
        if state not in ("waiting", "failed"):
            _losses(run_dir, number, point)
        if state == "finished":
            row = {"system": "teacher", "metric": "accuracy", "score": 0.91}
            write_json(trial_folder(run_dir, number) / "results.json", [row])
    return run_dir


def _trial(search: Search, trial: Trial) -> Trial:
    error = f"run.dir is '{trial.name}', which <none> has; choose another & go on" if trial.state == "failed" else None
    shares = {"finished": search.shares, "stopped": search.shares[:1]}.get(trial.state, ())
    rungs = [Rung(share, _figures(trial, share)) for share in shares]
    return Trial(trial.number, trial.point, trial.state, rungs, error, started=1.7e9, ended=1.7e9 + 90)


def _figures(trial: Trial, share: float) -> dict[str, float]:
    layers, hidden = trial.point["student.layers"], trial.point["student.hidden"]
    count, noise = trial.point["references.count"], random.Random(trial.number).gauss(0, 0.01)
    parameters = 30522 * hidden + 12 * layers * hidden**2
    accuracy = 0.5 + 0.05 * layers + 0.06 * math.log(hidden / 12) + 0.015 * count - 0.08 * (1 - share) + noise
    return {
        "accuracy": round(accuracy, 4),
        "f1": round(accuracy + 0.03, 4),
        "parameters": parameters,
        "gflops": round(parameters / 1e8, 4),
        "latency_ms": round(0.8 * layers * (1 + hidden / 64) + 0.35 * count, 3),
        "seconds": 40.0 * share * layers,
        "teacher_samples": 24.0,
    }


def _losses(run_dir: Path, number: int, point: Mapping[str, Any]) -> None:
    rng = random.Random(number)
    system = "refbert" if point["references.count"] else "tinybert"
    with MetricsLog(trial_folder(run_dir, number)) as metrics:
        for step in range(10, 310, 10):
            loss = 4 / point["student.layers"] * math.exp(-step / 120) + 1 + rng.gauss(0, 0.03)
            values = {
                "loss": loss,
                "hidden": 0.7 * loss,
                "embedding": 0.3 * loss,
                "learning_rate": 1e-3,
                "samples": step,
            }
            metrics.write("distill-general", f"general-{system}", step, values)
