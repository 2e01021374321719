"""How far a stage is, from the files that its processes keep writing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.pipeline import leaves
from refbert_dist.tracking.files import read_json_or_none

PROGRESS = {
    "cache-task": ("cache-task", "cache-augmented", "cache-fold-"),
    "distill-general": ("general-",),
    "distill-task": ("intermediate-", "prediction-"),
}
"""How the names of a stage's progress files begin, where they do not begin with its own."""


def last_sign(run_dir: Path, stage: str) -> float:
    """When a stage wrote last, in seconds since the epoch; 0 if never."""
    files = [*_files(run_dir, stage), *(run_dir / "logs").glob(f"{stage}-rank*.log")]
    return max((path.stat().st_mtime for path in files), default=0.0)


def _files(run_dir: Path, stage: str) -> list[Path]:
    starts = PROGRESS.get(stage, (stage,))
    return [path for start in starts for path in (run_dir / "logs").glob(f"{start}*.progress.json")]


def progress(run_dir: Path, stage: str) -> dict[str, Any] | None:
    """Newest of a stage's progress files: name, done, total, unit, rate (units/s), eta_s, age_s, or None."""
    found = [state for path in _files(run_dir, stage) if (state := read_json_or_none(path))]
    if not found:
        return None
    newest = max(found, key=lambda state: float(state["time"]))
    kept = {name: newest[name] for name in ("done", "total", "unit", "rate", "eta_s")}
    return {"name": newest["stage"], **kept, "age_s": max(0.0, round(time.time() - newest["time"], 1))}


def shards(exp: Experiment, stage: str) -> int | None:
    """How many shards of what a stage leaves are committed; None if it leaves none."""
    mine = [leaf.artifact for leaf in leaves(exp) if leaf.stage == stage]
    return sum(len(artifact.committed()) for artifact in mine) if mine else None
