"""``refbert cache verify``: is what lies in the cache what was written?"""

from __future__ import annotations

from rich.console import Console

from refbert_dist.artifacts import Artifact
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import parts
from refbert_dist.errors import RefusedError
from refbert_dist.pipeline import BY_NAME, check
from refbert_dist.references.neighbours import neighbours_artifact


def verify(exp: Experiment, full: bool, dry_run: bool) -> None:
    """Check every finished artefact of the experiment; raise if anything is damaged or nothing is there."""
    from refbert_dist.cache.contract import states_artifact
    from refbert_dist.data.tokens import tokens_artifact

    console = Console()
    check(exp)
    artifacts: dict[str, Artifact] = {f"tokens {part}": tokens_artifact(exp, part) for part in parts(exp)}
    if BY_NAME["retrieve"].wanted(exp):
        artifacts |= {f"neighbours {part}": neighbours_artifact(exp, part) for part in parts(exp)}
    if BY_NAME["cache-general"].wanted(exp):
        artifacts["teacher states, general"] = states_artifact(exp, "general")
    if BY_NAME["cache-task"].wanted(exp):
        artifacts["teacher states, task"] = states_artifact(exp, "task")
    finished = {name: artifact for name, artifact in artifacts.items() if artifact.complete}
    if not finished:
        raise RefusedError(f"nothing of this experiment is in {exp.cache.dir}; run refbert cache build first")
    damaged = 0
    for name, artifact in artifacts.items():
        if name not in finished:
            console.print(f"{name:24} not built", highlight=False)
            continue
        manifest = artifact.manifest()
        size = f"{manifest['shards']} shards, {manifest['bytes'] / 1e6:,.1f} MB"
        if dry_run:
            console.print(f"{name:24} would check {size} in {artifact.path}", highlight=False, soft_wrap=True)
            continue
        found = list(artifact.verify(full))
        console.print(f"{name:24} {'DAMAGED' if found else 'ok'}  {size}", highlight=False)
        for damage in found:
            console.print(f"  {artifact.path / damage.shard}: {damage.reason}", highlight=False, soft_wrap=True)
        damaged += len(found)
    if damaged:
        raise RefusedError(
            f"{damaged} damaged shard(s), named above; remove their sidecars and manifest.json to rebuild"
        )
