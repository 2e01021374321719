"""Text to token shards."""

from __future__ import annotations

from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.data.tokens import build_tokens, source_parts, tokens_artifact
from refbert_dist.engine.world import World
from refbert_dist.tracking.progress import Progress


def run(exp: Experiment) -> dict[str, Any]:
    """Tokenise the corpus and the task, together with all other groups; returns samples and tokens of each part."""
    world = World.from_environment()
    result: dict[str, Any] = {}
    for part in source_parts(exp):
        with Progress(f"prepare-{part}", None, "samples", run_dir=exp.run.dir, enabled=world.is_main) as progress:
            manifest = build_tokens(exp, part, progress.update, world.share_start)
        tokens_artifact(exp, part).register(exp.run.dir)
        result[part] = {name: manifest[name] for name in ("samples", "tokens", "documents", "dropped_short")}
        if manifest.get("broken_rows"):
            result[part]["broken_rows"] = manifest["broken_rows"]
    return result
