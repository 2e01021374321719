"""Neighbours of every sample, with guards against leaks."""

from __future__ import annotations

from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.data.tokens import parts
from refbert_dist.references.neighbours import build_neighbours, neighbours_artifact


def run(exp: Experiment) -> dict[str, Any]:
    """Look up the references of every part; returns what the guards removed and how alike neighbours are."""
    result: dict[str, Any] = {}
    for part in parts(exp):
        manifest = build_neighbours(exp, part)
        neighbours_artifact(exp, part).register(exp.run.dir)
        result[part] = {name: manifest[name] for name in manifest if name not in ("recipe", "kind", "format_version")}
    return result
