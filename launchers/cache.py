"""``refbert cache verify`` and ``repair``: is what lies in the cache what was written? If not, write it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from launchers.readable import size
from refbert_dist import pipeline, preflight
from refbert_dist.artifacts import Artifact, Damage
from refbert_dist.artifacts.shards import MANIFEST
from refbert_dist.cache.contract import Scope, check_made_from, ingredients, scope_part, scopes, states_artifact
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, check_sources, parts, tokens_artifact
from refbert_dist.errors import RefusedError
from refbert_dist.rundir import open_run


@dataclass(frozen=True)
class Item(pipeline.Leaf):
    """One artefact of an experiment, and how to tell that it is out of date."""

    check: Callable[[], object]
    """Raises :class:`UserError` if what it was made from has changed since; of a finished and undamaged one."""

    @property
    def begun(self) -> bool:
        """Whether anything of it is there."""
        return self.artifact.complete or bool(self.artifact.committed()) or bool(self.artifact.users())

    @property
    def extent(self) -> str:
        """Shards and bytes, for people."""
        if not self.artifact.complete:
            return f"{len(self.artifact.committed())} shards so far"
        try:
            manifest = self.artifact.manifest()
        except RefusedError:
            return "of unknown size"
        return f"{manifest['shards']} shards, {size(manifest['bytes'])}"


@dataclass(frozen=True)
class Mended:
    """What was done about a damaged shard."""

    item: Item
    name: str
    outcome: str


# -- what to look at ---------------------------------------------------------------------------------------------------


def items_of(exp: Experiment) -> list[Item]:
    """The artefacts that an experiment has in the cache, those that others are made from first."""
    checks: dict[str, Callable[[], object]] = {
        **{f"tokens {part}": partial(check_sources, exp, part) for part in parts(exp)},
        **{f"teacher states, {scope}": partial(_check_states, exp, scope) for scope in scopes(exp)},
    }
    # Of neighbours and vectors, the stage itself compares the fingerprints of the tokens.
    return [
        Item(leaf.label, leaf.stage, leaf.artifact, checks.get(leaf.label, lambda: None))
        for leaf in pipeline.leaves(exp)
    ]


def _check_states(exp: Experiment, scope: Scope) -> None:
    artifact, tokens = states_artifact(exp, scope), tokens_artifact(exp, scope_part(scope))
    if tokens.complete and not any(tokens.verify(full=False)):
        expected = ingredients(exp, scope, TokenSet.open(tokens))
        check_made_from(artifact, expected)


def find_damage(exp: Experiment, full: bool) -> dict[str, list[Damage]]:
    """For each artefact that is begun, by its label, what is wrong with it."""
    return {item.label: list(item.artifact.verify(full)) for item in items_of(exp) if item.begun}


# -- verify ------------------------------------------------------------------------------------------------------------


def verify(exp: Experiment, full: bool, dry_run: bool) -> None:
    """Check every artefact of the experiment, finished or not; raise if anything is damaged or nothing is there."""
    console = Console()
    preflight.check(exp)
    items = items_of(exp)
    if not any(item.begun for item in items):
        raise RefusedError(f"nothing of this experiment is in {exp.cache.dir}; run refbert cache build first")
    damaged = 0
    for item in items:
        if not item.begun:
            console.print(f"{item.label:24} not built", highlight=False, soft_wrap=True)
        elif dry_run:
            where = item.artifact.path
            console.print(f"{item.label:24} would check {item.extent} in {where}", highlight=False, soft_wrap=True)
        else:
            found = list(item.artifact.verify(full))
            state = "DAMAGED" if found else ("ok" if item.artifact.complete else "unfinished")
            console.print(f"{item.label:24} {state:10} {item.extent}", highlight=False, soft_wrap=True)
            _show(console, item, found)
            damaged += len({damage.shard for damage in found})
    if damaged:
        raise RefusedError(f"{damaged} damaged shard(s), named above; run refbert cache repair with the same arguments")


def _show(console: Console, item: Item, found: Iterable[Damage]) -> None:
    for damage in found:
        console.print(f"  {item.artifact.path / damage.shard}: {damage.reason}", highlight=False, soft_wrap=True)


# -- repair ------------------------------------------------------------------------------------------------------------


def repair(exp: Experiment, launch: pipeline.Launch, dry_run: bool) -> None:
    """Write what is damaged again, and nothing else; raise if anything is damaged after it."""
    console, errors = Console(), Console(stderr=True)
    preflight.check(exp)
    found = find_damage(exp, full=True)
    items = {item.label: item for item in items_of(exp)}
    for label, damages in found.items():
        _show(console, items[label], damages)
    if not any(found.values()):
        console.print(
            f"nothing to repair: all of {', '.join(found) or 'nothing'} is whole", highlight=False, soft_wrap=True
        )
    elif dry_run:
        console.print("these would be written again", highlight=False, soft_wrap=True)
    else:
        mended = mend(
            exp,
            found,
            launch,
            lambda stage, number, count: errors.print(f"[{number}/{count}] {stage.name}: {stage.title}", markup=False),
        )
        for one in mended:
            console.print(f"{one.item.label}: {one.name} {one.outcome}", highlight=False, soft_wrap=True)


def mend(
    exp: Experiment,
    found: dict[str, list[Damage]],
    launch: pipeline.Launch = pipeline.in_this_process,
    announce: Callable[[pipeline.Stage, int, int], None] = lambda stage, number, count: None,
) -> list[Mended]:
    """Take back what :func:`find_damage` found and run the stages that write it.

    Of an unfinished artefact the damaged shards are only taken back: the build that goes on writes them.

    Raises:
        UserError: what an artefact was made from has changed; nothing was touched.
        RefusedError: something is still damaged.
    """
    broken = [item for item in items_of(exp) if found.get(item.label)]
    names = {item.label: sorted({damage.shard for damage in found[item.label]}) for item in broken}
    finished = [item for item in broken if item.artifact.complete or MANIFEST in names[item.label]]
    for item in finished:
        if MANIFEST not in names[item.label]:
            item.check()
    before = {item.label: {name: _files(item.artifact, name) for name in names[item.label]} for item in broken}
    with open_run(exp):  # Where another command is at work in the run directory, nothing is taken back.
        for item in broken:
            item.artifact.discard(set(names[item.label]) - {MANIFEST})
    stages = tuple(dict.fromkeys(item.stage for item in finished))
    if stages:
        pipeline.run(exp, stages, launch, announce)
    mended = []
    for item in broken:
        shards = [name for name in names[item.label] if name != MANIFEST]
        left = list(item.artifact.verify(full=True, names=shards if item in finished else ()))
        if left:
            raise RefusedError(f"{item.artifact.path / left[0].shard} is still damaged: {left[0].reason}")
        for name in names[item.label]:
            outcome = _outcome(item.artifact, name, before[item.label][name]) if item in finished else "taken back"
            mended.append(Mended(item, name, outcome))
    return mended


def _files(artifact: Artifact, name: str) -> set[str]:
    """Names of a shard's files, which tell their content: as committed, or if that is lost, as they lie there."""
    try:
        sidecar = artifact.sidecar(name)
    except RefusedError:
        sidecar = None
    if sidecar is not None and name != MANIFEST:
        return {item["file"] for item in sidecar["files"].values()}
    return {path.name for path in artifact.path.glob(f"{name}.*.*")}


def _outcome(artifact: Artifact, name: str, before: set[str]) -> str:
    if before and before != _files(artifact, name):
        return "written again, with other bytes than before (another machine or other library versions)"
    return "written again, byte for byte" if before else "written again"
