"""Neighbours of every sample, with guards against leaks."""

from __future__ import annotations

from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.engine.world import World
from refbert_dist.references.lookup import build_neighbours
from refbert_dist.references.neighbours import looked_up_parts, neighbours_artifact
from refbert_dist.references.vectors import build_vectors, needs_vectors, vectors_artifact
from refbert_dist.tracking.progress import Progress

REPORTED = ("samples", "pool", "count", "refused", "label_agreement", "mismatch")


def run(exp: Experiment) -> dict[str, Any]:
    """Look up the references of every part; returns what the guards removed and how alike neighbours are."""
    world = World.from_environment()
    result: dict[str, Any] = {}
    for part in looked_up_parts(exp):
        if needs_vectors(exp):
            build_vectors(exp, part, world.share_start)
            vectors_artifact(exp, part).register(exp.run.dir)
        total = tokens_artifact(exp, part).manifest()["samples"]
        with Progress(f"retrieve-{part}", total, "samples", run_dir=exp.run.dir, enabled=world.is_main) as progress:
            manifest = build_neighbours(exp, part, progress.update, world.share_start)
        neighbours_artifact(exp, part).register(exp.run.dir)
        result[part] = {
            name: manifest[name] for name in manifest if name in REPORTED or name.startswith(("share_", "mean_"))
        }
    return result
