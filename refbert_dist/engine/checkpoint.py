"""Checkpoints of a training job: ``RUN_DIR/checkpoints/JOB/step-N/``, canonical and complete or not there.

``model.safetensors`` (fp32 weights), ``optimizer.safetensors`` (fp32 moments by parameter name), ``state.json`` (step,
samples, seconds) and ``COMPLETE``, which is written last. Nothing in them depends on ZeRO stage or number of processes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from refbert_dist.artifacts import read_json, write_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors, fsync_path, temporary_beside

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class TrainState:
    """How far a job is."""

    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Samples seen."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts."""


def save_checkpoint(
    folder: Path, state: TrainState, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], keep: int
) -> Path:
    """Write ``folder/step-N`` atomically and remove all but the newest ``keep`` complete ones."""
    final = folder / f"step-{state.step}"
    temporary = temporary_beside(final)
    with explain_disk_errors(folder):
        temporary.mkdir(parents=True)
        try:
            for name, tensors in (("model", weights), ("optimizer", moments)):
                path = temporary / f"{name}.safetensors"
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
                fsync_path(path)
            write_json(temporary / "state.json", asdict(state))
            write_text(temporary / COMPLETE, "")
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            fsync_path(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path.parent for path in folder.glob(f"step-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(folder: Path) -> tuple[TrainState, dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """State, weights and moments of the newest complete checkpoint, or None."""
    complete = complete_checkpoints(folder)
    if not complete:
        return None
    newest = complete[-1]
    return (
        TrainState(**read_json(newest / "state.json")),
        load_file(newest / "model.safetensors"),
        load_file(newest / "optimizer.safetensors"),
    )
