"""What MLflow is told about a run besides its metrics by step, read from the files of the run directory."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refbert_dist.config import read_yaml
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.metrics import parse_record
from refbert_dist.tracking.mlflow_store import Point, Status
from refbert_dist.tracking.provenance import FILE_NAME as PROVENANCE

EXPERIMENT, SEARCH, RESULTS, TRIAL = "experiment.yaml", "search.yaml", "results.json", "trial.json"
SUBMISSIONS = "submitted/jobs.jsonl"
ORIGIN = ("commit", "dirty", "hostname", "version", "python")
FIGURES = ("params", "size_ratio", "latency_ms", "latency_ratio", "seconds")
"""Columns of ``results.json`` beside the score."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"student.layers": "4", ...}``; what is not a string is written as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def parameters(run_dir: Path) -> dict[str, str]:
    """The settings of a run; of a search, which has an experiment of its own within them, those of the search."""
    files = [path for name in (SEARCH, EXPERIMENT) if (path := run_dir / name).exists()]
    return flatten(read_yaml(files[0])) if files else {}


def origin(run_dir: Path) -> dict[str, str]:
    """Tags: where it lies, the code and machine of its latest start, and the SLURM jobs that worked on it."""
    starts = read_json_or_none(run_dir / PROVENANCE) or [{}]
    tags = {"refbert.run_dir": str(run_dir)}
    tags |= flatten({name: value for name in ORIGIN if (value := starts[-1].get(name)) is not None}, "refbert.")
    path = run_dir / SUBMISSIONS
    lines = path.read_bytes().splitlines() if path.exists() else []
    jobs = [record["job_id"] for line in lines if (record := parse_record(line))]
    jobs += [start["slurm_job"] for start in starts if start.get("slurm_job")]
    if jobs:
        tags["refbert.slurm_jobs"] = " ".join(dict.fromkeys(jobs))
    return tags


def figures(run_dir: Path) -> list[Point]:
    """Metrics such as ``refbert.accuracy`` and ``teacher.latency_ms``, at the step that the system was trained to."""
    path = run_dir / RESULTS
    if not path.exists():
        return []
    time_ms = path.stat().st_mtime_ns // 10**6
    points = []
    for row in read_json_or_none(path) or []:
        if "trial" in row:  # of a search: each of its trials has a run of its own
            continue
        values = {row["metric"]: row["score"], **{name: row.get(name) for name in FIGURES}}
        points += [
            Point(f"{row['system']}.{name}", value, row["steps"], time_ms)
            for name, value in values.items()
            if is_number(value)
        ]
    # The rows of a system, one for each metric of the task, share their other figures.
    return list(dict.fromkeys(points))


def started_ms(run_dir: Path) -> int:
    """When a run was started first, in milliseconds since the epoch."""
    starts = json.loads((run_dir / PROVENANCE).read_text(encoding="utf-8"))
    return round(datetime.datetime.fromisoformat(starts[0]["started"]).timestamp() * 1000)


def trial_status(run_dir: Path, search: Status | None) -> Status | None:
    """How the run of a trial is to be shown in a search that is shown as ``search``; None leaves it as it is."""
    state = (read_json_or_none(run_dir / TRIAL) or {}).get("state")
    if state == "failed":
        return "FAILED"
    if state in ("finished", "stopped"):
        return "FINISHED"
    return search if search in (None, "RUNNING") else "KILLED"


def is_number(value: Any) -> bool:
    """Whether it can be the value of a metric."""
    return isinstance(value, int | float) and not isinstance(value, bool)
