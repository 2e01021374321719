"""The order of the stages and what each needs: the one list that every command reads.

Works like ``make``: a stage runs when what it leaves is not there and something wanted needs it. Importing this module
loads neither torch nor transformers, so plans are made in no time on a login node.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refbert_dist import preflight
from refbert_dist.artifacts import Artifact, recipe_key
from refbert_dist.cache.contract import cache_stage, is_cached, scopes, states_artifact
from refbert_dist.cache.models import check_shared, is_saved, shared_models
from refbert_dist.config import Experiment
from refbert_dist.data.tasks import has_labels
from refbert_dist.data.tokens import check_sources, evaluated_parts, parts, tokens_artifact
from refbert_dist.engine.world import World
from refbert_dist.errors import RefBertError, StoppedError, UserError, did_you_mean
from refbert_dist.onnx_library import EXPORT_ASKS, require_onnx
from refbert_dist.references.neighbours import check_exportable, looked_up_parts, neighbours_artifact
from refbert_dist.references.vectors import needs_vectors, vectors_artifact
from refbert_dist.rundir import is_search, open_run, record_stage, stage_record, stored_experiment
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.mlflow_sync import MlflowSync
from refbert_dist.tracking.system import sampled

Check = Callable[[Experiment], bool]

HURRY_S = 10.0
"""For MLflow, of the little time that is left to a run that was told to stop."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    title: str
    """What it does, for people."""
    entry: str
    """``module:function`` of its ``run(experiment) -> result``."""
    needs: tuple[str, ...]
    wanted: Check
    """Does this experiment have the stage?"""
    done: Check
    """Is everything that it leaves there?"""
    workers: Literal["one", "world", "groups", "nodes"] = "one"
    """One process; all processes in lockstep; independent groups that share out what is undone; or one process on each
    node, which starts others there itself."""

    def group_size(self, exp: Experiment) -> int | None:
        """Processes of an independent group; None where all processes are one world."""
        if self.workers != "groups":
            return None
        return exp.cache.group_processes if self.name.startswith("cache-") else 1

    def run(self, exp: Experiment) -> dict[str, Any]:
        """Run it in this process, as the rank that the environment names."""
        module, function = self.entry.split(":")
        started = time.monotonic()
        world = World.from_environment()
        with sampled(exp.run.dir, self.name) if world.is_main else contextlib.nullcontext():
            result: dict[str, Any] = getattr(importlib.import_module(module), function)(exp)
        if world.rank == 0:
            record_stage(exp.run.dir, self.name, time.monotonic() - started, world.size * world.groups, result)
        return result


@dataclass(frozen=True)
class Leaf:
    """One artefact that an experiment has in the cache."""

    label: str
    stage: str
    """The stage that builds it."""
    artifact: Artifact


def leaves(exp: Experiment) -> list[Leaf]:
    """The artefacts of an experiment, those that others are made from first; finished or not."""
    found = [
        Leaf(f"tokens {part}", "augment" if part == "augmented" else "prepare", tokens_artifact(exp, part))
        for part in parts(exp)
    ]
    looked_up = looked_up_parts(exp)
    if needs_vectors(exp):
        found += [Leaf(f"vectors {part}", "retrieve", vectors_artifact(exp, part)) for part in looked_up]
    found += [Leaf(f"neighbours {part}", "retrieve", neighbours_artifact(exp, part)) for part in looked_up]
    if is_cached(exp):
        found += [
            Leaf(f"teacher states, {scope}", cache_stage(scope), states_artifact(exp, scope)) for scope in scopes(exp)
        ]
    return found


def _leaves_stand(exp: Experiment, stage: str) -> bool:
    return all(leaf.artifact.complete for leaf in leaves(exp) if leaf.stage == stage)


def _evaluated(exp: Experiment) -> bool:
    """Whether there are scores of every student; a run may have got more of them since."""
    rows = read_json_or_none(exp.run.dir / "results.json") or []
    return {row["system"] for row in rows} >= set(exp.trained_systems())


def _benchmarked(exp: Experiment) -> bool:
    """Whether there are figures of what is asked for now."""
    found = read_json_or_none(exp.run.dir / "benchmark" / "benchmark.json") or {}
    return exp.benchmark is not None and found.get("settings") == exp.benchmark.model_dump(mode="json")


def _has_tests(exp: Experiment) -> bool:
    """Whether there are rows to answer for a submission."""
    return not all(map(has_labels, evaluated_parts(exp)))


def _exported(exp: Experiment) -> bool:
    """Whether the model folder is there, with what is asked for now."""
    manifest = read_json_or_none(exp.run.dir / "export" / "manifest.json") or {}
    return bool(manifest.get("export") == exp.export.model_dump(mode="json"))


STAGES = (
    Stage(
        "prepare",
        "text to token shards",
        "refbert_dist.stages.prepare:run",
        (),
        wanted=lambda exp: True,
        done=lambda exp: _leaves_stand(exp, "prepare"),
        workers="groups",
    ),
    Stage(
        "augment",
        "altered copies of the training rows",
        "refbert_dist.stages.augment:run",
        ("prepare",),
        wanted=lambda exp: exp.task is not None and exp.task.augment is not None,
        done=lambda exp: _leaves_stand(exp, "augment"),
        workers="groups",
    ),
    Stage(
        "retrieve",
        "neighbours of every sample",
        "refbert_dist.stages.retrieve:run",
        ("prepare", "augment"),
        wanted=lambda exp: exp.references.kept > 0,
        done=lambda exp: _leaves_stand(exp, "retrieve"),
        workers="groups",
    ),
    Stage(
        "cache-general",
        "teacher states of the corpus",
        "refbert_dist.stages.cache:general",
        ("prepare",),
        wanted=lambda exp: exp.corpus is not None and is_cached(exp),
        done=lambda exp: _leaves_stand(exp, "cache-general"),
        workers="groups",
    ),
    Stage(
        "distill-general",
        "students learn the teacher's language",
        "refbert_dist.stages.distill:general",
        ("retrieve", "cache-general"),
        wanted=lambda exp: exp.corpus is not None and not is_search(exp.run.dir),
        done=lambda exp: all(map(is_saved, products(exp, "distill-general"))),
        workers="world",
    ),
    Stage(
        "finetune",
        "the task teacher",
        "refbert_dist.stages.finetune:run",
        ("prepare",),
        wanted=lambda exp: exp.task is not None,
        done=lambda exp: all(map(is_saved, products(exp, "finetune"))),
        workers="world",
    ),
    Stage(
        "cache-task",
        "fine-tuned teacher states of the training rows",
        "refbert_dist.stages.cache:task",
        ("augment", "finetune"),
        wanted=lambda exp: exp.task is not None and is_cached(exp),
        done=lambda exp: _leaves_stand(exp, "cache-task"),
        workers="groups",
    ),
    Stage(
        "distill-task",
        "students learn the task",
        "refbert_dist.stages.distill:task",
        ("augment", "retrieve", "distill-general", "finetune", "cache-task"),
        wanted=lambda exp: exp.task is not None and not is_search(exp.run.dir),
        done=lambda exp: all(is_saved(exp.run.dir / "models" / f"prediction-{name}") for name in exp.trained_systems()),
        workers="world",
    ),
    Stage(
        "evaluate",
        "dev scores, sizes and latencies",
        "refbert_dist.stages.evaluate:run",
        ("distill-task",),
        wanted=lambda exp: exp.task is not None and not is_search(exp.run.dir),
        done=lambda exp: _evaluated(exp),
    ),
    Stage(
        "submission",
        "answers for GLUE's test server",
        "refbert_dist.stages.submission:run",
        ("distill-task",),
        wanted=lambda exp: _has_tests(exp) and not is_search(exp.run.dir),
        done=lambda exp: (exp.run.dir / "submission" / "submission.zip").exists(),
    ),
    Stage(
        "export",
        "a self-contained model folder",
        "refbert_dist.stages.export:run",
        ("distill-general", "evaluate"),
        wanted=lambda exp: not is_search(exp.run.dir),
        done=lambda exp: _exported(exp),
    ),
    Stage(
        "benchmark",
        "what its shape costs beside the teacher's",
        "refbert_dist.benchmark.run:run",
        (),
        wanted=lambda exp: exp.benchmark is not None and not is_search(exp.run.dir),
        done=lambda exp: _benchmarked(exp),
    ),
    Stage(
        # The only one that lies above this package: the name is looked up when the stage runs.
        "search",
        "students of many shapes",
        "tune.search:run",
        ("augment", "retrieve", "cache-general", "cache-task"),
        wanted=lambda exp: is_search(exp.run.dir),
        done=lambda exp: stage_record(exp.run.dir, "search").exists(),
        workers="nodes",
    ),
)

BY_NAME = {stage.name: stage for stage in STAGES}

Launch = Callable[[Stage, Experiment], None]
"""How a stage is started: in this process, in several local ones, on a cluster."""


def stage_named(name: str) -> Stage:
    """The stage of this name."""
    if name not in BY_NAME:
        raise UserError(f"stage is '{name}', which does not exist{did_you_mean(name, BY_NAME)}")
    return BY_NAME[name]


def products(exp: Experiment, stage: str) -> set[Path]:
    """What a stage leaves in the cache, for all runs that ask for the same; nothing where it serves its run alone."""
    if stage in ("distill-general", "finetune"):
        trained_on = "corpus" if stage == "distill-general" else "train"
        return {folder for folder, part in shared_models(exp).items() if part == trained_on}
    return {leaf.artifact.path for leaf in leaves(exp) if leaf.stage == stage}


def last_targets(exp: Experiment) -> tuple[str, ...]:
    """What all the other stages of an experiment are for."""
    return ("search" if is_search(exp.run.dir) else "export",)


def missing_stages(exp: Experiment, targets: Iterable[str] | None = None) -> list[Stage]:
    """The stages that must run, in order, so that everything ``targets`` leave is there; by default the last stage."""
    needed: set[str] = set()

    def visit(name: str) -> None:
        stage = stage_named(name)
        # An unwanted stage leaves nothing, but what it would need may still be needed: look through it.
        if not stage.wanted(exp) or not stage.done(exp):
            if stage.wanted(exp):
                needed.add(name)
            for need in stage.needs:
                visit(need)

    for target in targets or last_targets(exp):
        visit(target)
    return [stage for stage in STAGES if stage.name in needed]


def in_this_process(stage: Stage, exp: Experiment) -> None:
    """The simplest launcher: for debugging and tests."""
    stage.run(exp)


def check(exp: Experiment, targets: Iterable[str] = ()) -> None:
    """Everything that can be known to be wrong before work on ``targets`` starts."""
    preflight.check(exp)
    if "export" in targets:
        check_exportable(exp)
        if exp.export.onnx:
            require_onnx(*EXPORT_ASKS)
    if "benchmark" in targets and exp.benchmark:
        graphs = [way for way in exp.benchmark.ways if way.startswith("onnx")]
        if graphs:
            require_onnx(f"benchmark.ways has {graphs[0]}", "benchmark.ways=[eager]")
    for part in parts(exp):
        if tokens_artifact(exp, part).complete:
            check_sources(exp, part)
    check_shared(exp)


def run(
    exp: Experiment,
    targets: Iterable[str] = ("export",),
    launch: Launch = in_this_process,
    announce: Callable[[Stage, int, int], None] = lambda stage, number, count: None,
) -> list[str]:
    """Run what is missing for ``targets``; returns the names of the stages that ran."""
    check(exp, targets)
    with open_run(exp):
        register(exp)
        stages = missing_stages(exp, targets)
        if not stages:
            return []
        with tracking(exp):
            for number, stage in enumerate(stages, start=1):
                announce(stage, number, len(stages))
                launch(stage, exp)
                require_result(stage, exp)
    return [stage.name for stage in stages]


def require_result(stage: Stage, exp: Experiment) -> None:
    """Raise :class:`RefBertError` when a stage that has ended is not done."""
    if not stage.done(exp):
        raise RefBertError(f"stage {stage.name} ended without leaving its result; see {exp.run.dir}/logs")


def advance(stage: Stage, exp: Experiment) -> str:
    """How far a stage is, as a text that is another one as soon as it has got any further."""
    shards = sum(len(leaf.artifact.committed()) for leaf in leaves(exp) if leaf.stage == stage.name)
    # A checkpoint's folder gets its name when it is complete.
    made = ("checkpoints/*/step-*", "trials/*/checkpoints/*/step-*", "trials/*/results.json")
    found = sorted(str(path.relative_to(exp.run.dir)) for pattern in made for path in exp.run.dir.glob(pattern))
    return " ".join([f"{shards} shards", *found])


def register(exp: Experiment) -> None:
    """Keep garbage collection from what other runs have left and this one will read."""
    found = [leaf.artifact for leaf in leaves(exp) if leaf.artifact.complete]
    found += [Artifact(folder) for folder in shared_models(exp) if is_saved(folder)]
    for artifact in found:
        if exp.run.dir.resolve() not in artifact.users():
            artifact.register(exp.run.dir)


def mlflow_copy(exp: Experiment) -> MlflowSync:
    """What copies this run's records to MLflow; of a search also those of its trials."""
    return MlflowSync(exp.run.dir, exp.tracking, fingerprints)


def fingerprints(run_dir: Path) -> dict[str, str]:
    """Tags such as ``refbert.fingerprint.tokens dev``: what a run's artefacts hold, as far as they are finished.

    None where they cannot be looked at: a run may be copied from a place that does not see its cache or its teacher.
    """
    found = {}
    with contextlib.suppress(RefBertError, OSError):
        for leaf in leaves(stored_experiment(run_dir)):
            if leaf.artifact.complete:
                manifest = leaf.artifact.manifest()
                # Teacher states are known by what they are made from: no two machines compute quite the same.
                content = manifest.get("fingerprint") or recipe_key(manifest["kind"], manifest["ingredients"])
                # MLflow allows no comma.
                found[f"refbert.fingerprint.{leaf.label.replace(',', '')}"] = str(content)
    return found


@contextlib.contextmanager
def tracking(exp: Experiment) -> Iterator[None]:
    """Copy what the run records to MLflow while it goes on; never in its way."""
    if not exp.tracking.mlflow:
        yield
        return
    sync = mlflow_copy(exp)
    sync.start()
    try:
        yield
    except StoppedError:
        sync.close("KILLED", HURRY_S)
        raise
    except BaseException:
        sync.close("FAILED")
        raise
    sync.close("FINISHED")
