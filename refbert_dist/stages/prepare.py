"""Text to token shards."""

from __future__ import annotations

from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.data.tokens import build_tokens, parts, tokens_artifact
from refbert_dist.tracking.progress import Progress


def run(exp: Experiment) -> dict[str, Any]:
    """Tokenise the corpus and the task; returns samples and tokens of each part."""
    result: dict[str, Any] = {}
    for part in parts(exp):
        with Progress(f"prepare-{part}", None, "samples", run_dir=exp.run.dir) as progress:
            manifest = build_tokens(exp, part, progress.update)
        tokens_artifact(exp, part).register(exp.run.dir)
        result[part] = {name: manifest[name] for name in ("samples", "tokens", "documents", "dropped_short")}
    return result
