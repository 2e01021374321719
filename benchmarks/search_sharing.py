"""A search whose trials share one teacher cache, against the same trials with the teacher running beside each.

    python benchmarks/search_sharing.py [TRIALS]

Random weights in BERT-base's shape, built-in text, random points over depth, width and reference count. Both searches
run through the command line, one after the other, with the same points. Text, neighbours and the fine-tuned teacher
are needed by both and left out.

floor    operations of all matrix products: the cache's and its trials', over those of the online trials
starts   what is left of a trial when its training is taken away: loading of libraries, set-up, evaluation
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cost_model import base_teacher

from refbert_dist.artifacts import read_json
from refbert_dist.config import Experiment
from refbert_dist.costs.extents import extents
from refbert_dist.costs.rates import Core, Device, Rates, Speed
from refbert_dist.costs.stages import Place, stage_costs
from refbert_dist.errors import UserError
from refbert_dist.tracking.quiet import quiet_libraries
from tune.config import stored_search
from tune.records import Trial, read_trials, trial_folder
from tune.space import shared_experiment, trial_experiment

TRIALS = 20
WAYS: dict[str, dict[str, str]] = {
    "cached": {"targets": "cache", "states": "cache"},
    "online": {"targets": "online", "states": "online"},
}
BUILDING = ("cache-general", "cache-task")
STUDENTS = ("distill-general", "distill-task")

_COUNTING = Speed(flops_s=1.0, elements_s=float("inf"), layer_s=0.0)
OPERATIONS = Place(
    rates=Rates(
        Device(
            name="counts operations",
            is_gpu=False,
            basis="assumed",
            forward={"fp32": _COUNTING},
            training=_COUNTING,
            parameter_s=0.0,
            optimizer_s=0.0,
            pass_s=0.0,
            reduced_bytes_s=float("inf"),
        ),
        Core(
            name="costs nothing",
            tokens_s=float("inf"),
            encode_s={"fp16": 0.0},
            decode_s={"fp16": 0.0},
            write_bytes_s=float("inf"),
            disk_bytes_s=float("inf"),
            disk_total_bytes_s=float("inf"),
            sample_s=0.0,
        ),
    ),
    processes=1,
    cores=1,
)
"""A machine on which a second is an operation, and only matrix products take any."""


def search_values(folder: Path, way: str, trials: int) -> dict[str, Any]:
    weights_of_bert = {"model": str(base_teacher(folder))}
    builtin = {"path": "builtin:python-docs"}
    return {
        "experiment": {
            "run": {"dir": str(folder / way)},
            "cache": {"dir": str(folder / f"cache-{way}"), "shard_tokens": 8192, "batch_tokens": 2048},
            "teacher": weights_of_bert,
            "corpus": {**builtin, "max_length": 128, "max_documents": 24},
            "task": {
                **builtin,
                "name": "same-topic",
                "max_length": 64,
                "max_train": 160,
                "held_out": 0.2,
                "min_teacher_gain": None,
            },
            "references": {"max_length": 64, "states": WAYS[way]["states"]},
            "finetune": {"epochs": 1},
            "distill": {
                "targets": WAYS[way]["targets"],
                "general": {"epochs": 1, "batch_size": 32},
                "intermediate": {"epochs": 1},
                "prediction": {"epochs": 1},
            },
            "launch": {"processes": 2},
            "tracking": {"mlflow": False},
        },
        "space": {
            "student.layers": [1, 2, 3, 4],
            "student.hidden": [96, 192, 312],
            "references.count": [0, 1, 2],
        },
        "objectives": ["score", "parameters"],
        "look": {"algorithm": "random", "trials": trials},
    }


def search(folder: Path, way: str, trials: int) -> Path:
    file = folder / f"{way}.yaml"
    file.write_text(yaml.safe_dump(search_values(folder, way, trials)))
    subprocess.run([sys.executable, "-m", "launchers.cli", "tune", str(file)], check=True, stdout=sys.stderr)
    return folder / way


def stage_s(run_dir: Path, stages: tuple[str, ...]) -> float:
    """Of stages that were run here."""
    paths = [run_dir / "stages" / f"{stage}.json" for stage in stages]
    return sum(read_json(path)["seconds"] for path in paths if path.exists())


def operations(exp: Experiment, stages: tuple[str, ...]) -> float:
    costs = stage_costs(exp, extents(exp), OPERATIONS)
    return sum(costs[stage].device_s for stage in stages if stage in costs)


class Found:
    """What a search took."""

    def __init__(self, run_dir: Path) -> None:
        search = stored_search(run_dir)
        self.trials: list[Trial] = read_trials(run_dir)
        shared = shared_experiment(search)
        self.building_s = stage_s(run_dir, BUILDING)
        self.trials_s = stage_s(run_dir, ("search",))
        self.teacher_samples = sum(trial.figures["teacher_samples"] for trial in self.trials)
        self.built = operations(shared, BUILDING)
        self.trained = 0.0
        self.starts_s = []
        for trial in self.trials:
            folder = trial_folder(run_dir, trial.number)
            self.trained += operations(trial_experiment(search, trial.point, folder, 1.0), STUDENTS)
            assert trial.ended and trial.started
            self.starts_s.append(trial.ended - trial.started - stage_s(folder, STUDENTS))

    @property
    def seconds(self) -> float:
        return self.building_s + self.trials_s


def report(found: Mapping[str, Found]) -> None:
    print("search   cache s  trials s  training s  10^12 operations  teacher samples  starts s (median)")
    for way, its in found.items():
        training_s = sum(trial.figures["seconds"] for trial in its.trials)
        starts_s = sorted(its.starts_s)[len(its.starts_s) // 2]
        operations = (its.built + its.trained) / 1e12
        print(
            f"{way:8} {its.building_s:7.1f} {its.trials_s:9.1f} {training_s:11.1f} {operations:17.2f} "
            f"{its.teacher_samples:16.0f} {starts_s:18.1f}"
        )
    cached, online = found["cached"], found["online"]
    floor = (cached.built + cached.trained) / (online.built + online.trained)
    took = cached.seconds / online.seconds
    print(
        f"cached / online: {took:.3f} of the time; floor {floor:.3f}, of operations; {took / floor:.2f} times the floor"
    )


def main(trials: int) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {way: Found(search(folder, way, trials)) for way in WAYS}
    points = [[trial.point for trial in its.trials] for its in found.values()]
    if points[0] != points[1]:
        raise UserError("the two searches have tried different points")
    report(found)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
