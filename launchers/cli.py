"""The ``refbert`` command. Every command reads one experiment file; heavy imports wait until something runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launchers.cli_models import models_app
from launchers.cli_runs import runs_app
from launchers.execute import execute, show_informativeness, show_run, show_scores, show_submission
from launchers.options import DryRun, ExperimentFile, On, Overrides, Profiled, Wait, Where

if TYPE_CHECKING:
    from refbert_dist.config import Experiment

app = typer.Typer(
    name="refbert",
    help="Compress a BERT into a RefBERT student: small, fast, and still reading its teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="The teacher cache.", no_args_is_help=True)
distill_app = typer.Typer(help="Train students.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(distill_app, name="distill")
app.add_typer(runs_app)
app.add_typer(models_app)

PROFILING = ("engine.profile=true",)
DEMO = Path(__file__).with_name("demo.yaml")


def _experiment(path: Path, overrides: list[str] | None) -> Experiment:
    from refbert_dist.config import load_experiment

    return load_experiment(path, overrides or ())


# -- the stages --------------------------------------------------------------------------------------------------------


def _stages(
    group: typer.Typer,
    name: str,
    targets: tuple[str, ...],
    text: str,
    show: Callable[[Experiment], None] = lambda exp: None,
) -> None:
    """Add the command that runs some stages and what they need, and then shows what came of it."""

    def command(
        path: ExperimentFile,
        overrides: Overrides = None,
        on: On = "local",
        dry_run: DryRun = False,
        wait: Wait = False,
        profile: Profiled = False,
    ) -> None:
        exp = _experiment(path, [*(overrides or ()), *(PROFILING if profile else ())])
        if execute(exp, _wanted(exp, path, targets), Where(on, dry_run, wait)):
            show(exp)

    group.command(name, help=text)(command)


def _wanted(exp: Experiment, path: Path, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the targets that the experiment has; :class:`UserError` where that is none."""
    from refbert_dist.errors import UserError
    from refbert_dist.pipeline import stage_named

    wanted = tuple(target for target in targets if stage_named(target).wanted(exp))
    if not wanted:
        raise UserError(f"{path} has nothing for {' or '.join(targets)}; add the corpus or task section it works on")
    return wanted


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file, or table file.")],
    overrides: Overrides = None,
    on: On = "local",
    dry_run: DryRun = False,
    wait: Wait = False,
    profile: Profiled = False,
) -> None:
    """Run all stages, or all cells of a table; a second time only what is missing."""
    from refbert_dist.table.config import is_table_file

    changes, where = [*(overrides or ()), *(PROFILING if profile else ())], Where(on, dry_run, wait)
    if is_table_file(path):
        from launchers.table import run_table

        run_table(path, changes, where)
    elif execute(exp := _experiment(path, changes), ("export",), where):
        show_run(exp)


_stages(app, "prepare", ("prepare",), "Turn text into token shards.")
_stages(app, "augment", ("augment",), "Make altered copies of the training rows.")
_stages(
    app,
    "retrieve",
    ("retrieve",),
    "Find the neighbours of every sample, and show how much they tell.",
    show_informativeness,
)
_stages(
    cache_app,
    "build",
    ("cache-general", "cache-task"),
    "Run the teacher over the corpus and over the task, once.",
)
_stages(app, "finetune", ("finetune",), "Fine-tune the teacher on the task.")
_stages(distill_app, "general", ("distill-general",), "Distil on the corpus: students learn the teacher's language.")
_stages(
    distill_app,
    "task",
    ("distill-task",),
    "Distil on the task: hidden states and attention, then predictions.",
)


@app.command()
def evaluate(
    path: ExperimentFile,
    overrides: Overrides = None,
    on: On = "local",
    dry_run: DryRun = False,
    wait: Wait = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Also answer the test rows, in the form of GLUE's test server.")
    ] = False,
    profile: Profiled = False,
) -> None:
    """Score teacher and students on the task's dev rows; prints the table."""
    from refbert_dist.errors import UserError
    from refbert_dist.pipeline import stage_named

    exp = _experiment(path, [*(overrides or ()), *(PROFILING if profile else ())])
    targets = _wanted(exp, path, ("evaluate",))
    if submission:
        targets = (*targets, "submission")
        if not stage_named("submission").wanted(exp):
            raise UserError(
                "task.test_file is null, so that there is nothing to submit; set task.test_file=test.tsv, in a run of "
                "its own, because references must not come from test rows"
            )
    if execute(exp, targets, Where(on, dry_run, wait)):
        show_scores(exp)
        if submission:
            show_submission(exp)


@app.command()
def export(
    path: ExperimentFile,
    overrides: Overrides = None,
    on: On = "local",
    dry_run: DryRun = False,
    wait: Wait = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="With ONNX graphs; the same as export.onnx=true.")] = False,
) -> None:
    """Write the model folder: weights, tokenizer, references, card; with ONNX graphs where asked for."""
    exp = _experiment(path, [*(overrides or ()), *(["export.onnx=true"] if onnx else [])])
    if execute(exp, ("export",), Where(on, dry_run, wait)):
        show_run(exp)


@app.command()
def demo(overrides: Overrides = None, on: On = "local", dry_run: DryRun = False, wait: Wait = False) -> None:
    """The whole pipeline on data that ships with Python, offline."""
    exp = _experiment(DEMO, overrides)
    if execute(exp, ("export",), Where(on, dry_run, wait)):
        show_run(exp)


@app.command()
def tune(
    path: Annotated[Path, typer.Argument(metavar="SEARCH.yaml", help="Search file.")],
    overrides: Overrides = None,
    on: On = "local",
    dry_run: DryRun = False,
    wait: Wait = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search; there must be one in run.dir.")
    ] = False,
    export_best: Annotated[
        bool, typer.Option("--export-best", help="Train the chosen student on all rows, and export it.")
    ] = False,
    pick: Annotated[
        str | None, typer.Option(help="Which one: knee, score, another objective, or NAME<=X for the best within.")
    ] = None,
) -> None:
    """Search the student's shape, the references it reads and how it is trained; a second time only what is missing."""
    from rich.console import Console

    from launchers.search import require_begun, show_search
    from tune.best import best_experiment, choose
    from tune.config import load_search
    from tune.search import STAGE, begin

    search, where = load_search(path, overrides or ()), Where(on, dry_run, wait)
    if resume:
        require_begun(search)
    if export_best:
        exp = best_experiment(search, choose(search, pick))
        if execute(exp, ("export",), where):
            show_run(exp)
    elif dry_run:
        show_search(search, on, Console())
    elif execute(exp := begin(search), (STAGE,), where):
        show_run(exp)


QUICK = ("lengths=[32, 128]", "ways=[eager, onnx-int8]", "rounds=3", "pool_texts=1000")
"""Of ``benchmark``: what a few minutes are enough for."""


@app.command()
def benchmark(
    path: ExperimentFile,
    overrides: Overrides = None,
    on: On = "local",
    dry_run: DryRun = False,
    wait: Wait = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: " + ", ".join(QUICK) + ".")] = False,
) -> None:
    """What the student's shape costs beside the teacher's: size, operations, memory, latency, throughput."""
    from launchers.tables import show_benchmark

    asked = overrides or []
    exp = _experiment(path, [*(f"benchmark.{value}" for value in QUICK if quick), *asked])
    if exp.benchmark is None:
        exp = _experiment(path, ["benchmark={}", *asked])
    if execute(exp, ("benchmark",), Where(on, dry_run, wait)):
        show_benchmark(exp)


# -- the teacher cache -------------------------------------------------------------------------------------------------


@cache_app.command("estimate")
def cache_estimate(path: ExperimentFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Measure the teacher here for a moment, and say what a cache takes and whether it pays."""
    from launchers.estimate import estimate

    estimate(_experiment(path, overrides), dry_run)


@cache_app.command("verify")
def cache_verify(
    path: ExperimentFile,
    overrides: Overrides = None,
    full: Annotated[bool, typer.Option("--full", help="Hash every byte, not only sizes.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Check everything the experiment has in the cache; exit code 1 names the damaged shards."""
    from launchers.cache import verify

    verify(_experiment(path, overrides), full, dry_run)


@cache_app.command("repair")
def cache_repair(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Hash everything the experiment has in the cache, and write again what is damaged, nothing else."""
    from launchers.cache import repair
    from launchers.local import local_launcher
    from launchers.profile import LocalProfile, load_profile
    from refbert_dist.errors import UserError

    profile = load_profile(on)
    if not isinstance(profile, LocalProfile):
        raise UserError(f"--on is '{on}', but repair works on this machine only; use --on local, in a job if need be")
    repair(_experiment(path, overrides), local_launcher(profile), dry_run)


@cache_app.command("gc")
def cache_gc(
    path: ExperimentFile,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
) -> None:
    """List all that lies in cache.dir and who uses it; then delete what only runs used that are gone."""
    from launchers.garbage import gc

    gc(_experiment(path, overrides).cache.dir, yes, dry_run)


@app.command()
def doctor(
    on: On = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name the checks; make none.")] = False,
) -> None:
    """Say whether this machine can run the toolkit, and what is missing; exit code 1 if something is."""
    from launchers.checkup.doctor import examine

    examine(on, dry_run)


def main() -> None:
    """Entry point: errors that are a person's to mend are one sentence on stderr, with an exit code."""
    from refbert_dist.errors import RefBertError

    try:
        app()
    except RefBertError as error:
        sys.stderr.write(f"refbert: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (``| head``): nothing is wrong, and nothing is left to say.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
