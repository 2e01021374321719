"""Copies of the training rows, with words replaced by others that fit."""

from __future__ import annotations

import logging
from typing import Any

from refbert_dist.augment.build import build_augmented
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.engine.memory import explain_out_of_memory
from refbert_dist.engine.world import World
from refbert_dist.tracking.progress import Progress

REPORTED = ("samples", "tokens", "rows", "copies", "duplicates", "candidates", "remark")

log = logging.getLogger(__name__)


def run(exp: Experiment) -> dict[str, Any]:
    """Make the part ``augmented``, together with all other groups; returns how many copies there are, and from what."""
    world = World.from_environment()
    total = tokens_artifact(exp, "train").manifest()["samples"]
    advice = f"lower cache.batch_tokens (now {exp.cache.batch_tokens})"
    with (
        explain_out_of_memory("augmentation", advice),
        Progress("augment", total, "rows", run_dir=exp.run.dir, enabled=world.is_main) as progress,
    ):
        manifest = build_augmented(exp, progress.update, world.share_start)
    tokens_artifact(exp, "augmented").register(exp.run.dir)
    if manifest["remark"] and world.is_main:
        log.warning("%s", manifest["remark"])
    return {name: manifest[name] for name in REPORTED}
