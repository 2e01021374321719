"""The ``refbert`` command. Every command reads one experiment file; heavy imports wait until something runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as student.layers=3.")
]
On = Annotated[str, typer.Option("--on", metavar="PROFILE", help="Where to run: local, or a profile's YAML file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print configuration, plan and sizes; start nothing.")]

DEMO = Path(__file__).with_name("demo.yaml")


def _experiment(path: Path, overrides: list[str] | None) -> Experiment:
    from refbert_dist.config import load_experiment

    return load_experiment(path, overrides or ())


def _execute(exp: Experiment, targets: tuple[str, ...], on: str, dry_run: bool) -> list[str] | None:
    """Run what ``targets`` need, or only say what would run (returns None)."""
    from rich.console import Console

    from launchers.profile import load_profile

    profile = load_profile(on)
    if dry_run:
        from launchers.plan import show_plan

        show_plan(exp, targets, profile, Console())
        return None
    from launchers.local import local_launcher
    from refbert_dist import pipeline

    errors = Console(stderr=True)
    ran = pipeline.run(
        exp,
        targets,
        local_launcher(profile),
        lambda stage, number, count: errors.print(f"[{number}/{count}] {stage.name}: {stage.title}", markup=False),
    )
    if not ran:
        Console().print(f"nothing to do: everything that {', '.join(targets)} needs is in {exp.run.dir}")
    return ran


def _stages(path: Path, overrides: list[str] | None, targets: tuple[str, ...], on: str, dry_run: bool) -> None:
    """A command that is one or more stages, and what they need."""
    from refbert_dist.errors import UserError
    from refbert_dist.pipeline import stage_named

    exp = _experiment(path, overrides)
    wanted = tuple(name for name in targets if stage_named(name).wanted(exp))
    if not wanted:
        raise UserError(f"{path} has nothing for {' or '.join(targets)}; add the corpus or task section it works on")
    _execute(exp, wanted, on, dry_run)


def _run(exp: Experiment, on: str, dry_run: bool) -> None:
    if _execute(exp, ("export",), on, dry_run) is None:
        return
    from rich.console import Console

    from launchers.tables import show_paths, show_results

    console = Console(width=None if sys.stdout.isatty() else 160)
    if exp.task:
        show_results(exp, console)
    show_paths(exp, console)


@app.command()
def run(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Run all stages; a second time only what is missing."""
    _run(_experiment(path, overrides), on, dry_run)


@app.command()
def demo(overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """The whole pipeline on data that ships with Python, offline."""
    _run(_experiment(DEMO, overrides), on, dry_run)


@app.command()
def prepare(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Turn text into token shards."""
    _stages(path, overrides, ("prepare",), on, dry_run)


@app.command()
def retrieve(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Find the neighbours of every sample, and show how much they tell."""
    exp = _experiment(path, overrides)
    _stages(path, overrides, ("retrieve",), on, dry_run)
    if not dry_run:
        from rich.console import Console

        from launchers.tables import show_neighbours
        from refbert_dist.data.tokens import parts
        from refbert_dist.references.neighbours import neighbours_artifact

        show_neighbours([neighbours_artifact(exp, part).manifest() for part in parts(exp)], Console())


@cache_app.command("build")
def cache_build(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Run the teacher over the corpus and over the task, once."""
    _stages(path, overrides, ("cache-general", "cache-task"), on, dry_run)


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
    from launchers.profile import load_profile

    repair(_experiment(path, overrides), local_launcher(load_profile(on)), dry_run)


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
def finetune(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Fine-tune the teacher on the task."""
    _stages(path, overrides, ("finetune",), on, dry_run)


@distill_app.command("general")
def distill_general(
    path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False
) -> None:
    """Distil on the corpus: students learn the teacher's language."""
    _stages(path, overrides, ("distill-general",), on, dry_run)


@distill_app.command("task")
def distill_task(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Distil on the task: hidden states and attention, then predictions."""
    _stages(path, overrides, ("distill-task",), on, dry_run)


@app.command()
def evaluate(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Score teacher and students on the task's dev rows; prints the table."""
    exp = _experiment(path, overrides)
    _stages(path, overrides, ("evaluate",), on, dry_run)
    if not dry_run:
        from rich.console import Console

        from launchers.tables import show_results

        show_results(exp, Console(width=None if sys.stdout.isatty() else 160))


@app.command()
def export(path: ExperimentFile, overrides: Overrides = None, on: On = "local", dry_run: DryRun = False) -> None:
    """Write the model folder: weights, tokenizer, references."""
    _stages(path, overrides, ("export",), on, dry_run)


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="An exported model folder.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")] = 32,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open the model and stop before reading texts.")] = False,
) -> None:
    """Texts on stdin, one a line (a tab between the sentences of a pair); one JSON object a line on stdout."""
    import json

    from refbert_dist.predictor import Predictor, parse_lines
    from refbert_dist.tracking.quiet import quiet_libraries

    quiet_libraries()
    predictor = Predictor(model_dir)
    if dry_run:
        typer.echo(f"{model_dir} is a model of {predictor.model.config.num_labels} label(s), ready to predict")
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    for result in predictor.stream(parse_lines(sys.stdin), batch_size):
        typer.echo(json.dumps(result, ensure_ascii=False))


@app.command()
def doctor(
    on: On = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name the checks; make none.")] = False,
) -> None:
    """Say whether this machine can run the toolkit, and what is missing; exit code 1 if something is."""
    from launchers.doctor import examine

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
