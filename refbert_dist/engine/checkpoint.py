"""Checkpoints of a training job on disk: ``RUN_DIR/checkpoints/JOB/step-N/``, canonical and complete or not there.

``model.safetensors`` (fp32 weights), ``optimizer.safetensors`` (fp32 moments by parameter name, and Adam's count of
steps), ``state.json`` (version, step, samples, seconds, and how the steps were computed) and ``COMPLETE``, which is
written last; of a job that keeps its best weights also ``best.safetensors``, once it has looked. The tensors do not
depend on ZeRO stage, precision or number of processes.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from refbert_dist.artifacts import read_json, write_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors, fsync_path, temporary_beside
from refbert_dist.artifacts.tensors import read_header
from refbert_dist.errors import UserError

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
STATE = "state.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
BEST = "best.safetensors"
VERSION = 1
"""Raised whenever an older release could not read a checkpoint, or would read it wrongly."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainState:
    """How far a job is."""

    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Samples seen."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts."""
    skipped: int = 0
    """Of the steps, those that changed nothing because loss or gradient were not finite."""
    stalled: str = ""
    """What there is to say of a loss that has not moved; known to the first process."""
    best_step: int = 0
    """Step whose weights scored best where that is looked at; 0 before the first look."""
    best_score: float = 0.0


@dataclass(frozen=True)
class Stretch:
    """Steps that were computed in the same way."""

    first_step: int
    """Steps that had been taken before."""
    processes: int
    zero_stage: int
    precision: str


def write_checkpoint(
    folder: Path,
    state: TrainState,
    stretches: tuple[Stretch, ...],
    weights: Tensors,
    optimizer: Tensors,
    keep: int,
    best: Tensors | None = None,
) -> None:
    """Write ``folder/step-N`` atomically; remove all but the newest ``keep`` complete ones and what kills have left."""
    final = folder / f"step-{state.step}"
    temporary = temporary_beside(final)
    with explain_disk_errors(folder):
        temporary.mkdir(parents=True)
        try:
            for name, tensors in ((MODEL, weights), (OPTIMIZER, optimizer), *([(BEST, best)] if best else [])):
                save_file(tensors, temporary / name)
                fsync_path(temporary / name)
            how = [asdict(stretch) for stretch in stretches]
            write_json(temporary / STATE, {"version": VERSION, **asdict(state), "stretches": how})
            write_text(temporary / COMPLETE, "")
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            fsync_path(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in (*complete_checkpoints(folder)[:-keep], *folder.glob(".step-*.tmp")):
        shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path.parent for path in folder.glob(f"step-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint that is whole, or None; each that is passed over is logged."""
    for path in reversed(complete_checkpoints(folder)):
        try:
            read_json(path / STATE)
            read_header(path / MODEL)
            read_header(path / OPTIMIZER)
            if (path / BEST).exists():
                read_header(path / BEST)
        except (OSError, ValueError) as error:
            log.warning("checkpoint %s is damaged and not used: %s", path, error)
        else:
            return path
    if any(folder.glob("step-*")):
        log.warning("%s has no whole checkpoint; the job starts from its beginning", folder)
    return None


def read_state(path: Path) -> tuple[TrainState, tuple[Stretch, ...]]:
    """How far the checkpoint at ``path`` is, and how it was computed; UserError if its version is another."""
    content: dict[str, Any] = read_json(path / STATE)
    version = content.pop("version", None)
    if version != VERSION:
        raise UserError(
            f"checkpoint {path} has version {version}, but this release reads version {VERSION}; continue with the "
            f"release that wrote it, or remove {path.parent} to start the job anew"
        )
    stretches = tuple(Stretch(**stretch) for stretch in content.pop("stretches"))
    return TrainState(**content), stretches


def check_fits(path: Path, weights: Tensors, optimizer: dict[str, torch.Size]) -> None:
    """Refuse a checkpoint whose names or shapes are not those of this job; the message names the first difference."""
    wanted = {MODEL: {name: tensor.shape for name, tensor in weights.items()}, OPTIMIZER: optimizer}
    for file, expected in wanted.items():
        header, _ = read_header(path / file)
        found = {name: list(item["shape"]) for name, item in header.items()}
        here = {name: list(shape) for name, shape in expected.items()}
        for name in sorted(found.keys() | here.keys()):
            if found.get(name) != here.get(name):
                raise UserError(
                    f"checkpoint {path} is of another experiment: '{name}' is {_shape(found.get(name))} there and "
                    f"{_shape(here.get(name))} here; choose another run.dir, or remove {path.parent}"
                )


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
