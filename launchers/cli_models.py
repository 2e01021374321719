"""The commands for finished models: ``predict``, ``serve`` and ``bank``. As in :mod:`launchers.cli`, imports wait."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launchers.options import BatchSize, Device, DryRun, Dtype, ModelDir, References, RuntimeName

models_app = typer.Typer()
bank_app = typer.Typer(help="The references of a finished model.", no_args_is_help=True)
models_app.add_typer(bank_app, name="bank")

TextFile = Annotated[Path, typer.Argument(metavar="FILE", help="Texts, one a line; a tab between two sentences.")]
TeacherOf = Annotated[str, typer.Option(help="The fine-tuned teacher of the run: CACHE_DIR/models/KEY.")]


@bank_app.command("show")
def bank_show(
    model_dir: ModelDir,
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Print these texts.")] = None,
) -> None:
    """What the bank holds, or the texts that predictions name by id."""
    from launchers.bank import show

    show(model_dir, ids or [])


@bank_app.command("add")
def bank_add(model_dir: ModelDir, source: TextFile, teacher: TeacherOf, dry_run: DryRun = False) -> None:
    """Add texts; the model is not trained again."""
    from launchers.bank import add

    add(model_dir, source, teacher, False, dry_run)


@bank_app.command("rebuild")
def bank_rebuild(model_dir: ModelDir, source: TextFile, teacher: TeacherOf, dry_run: DryRun = False) -> None:
    """Put other texts in the place of all."""
    from launchers.bank import add

    add(model_dir, source, teacher, True, dry_run)


@bank_app.command("remove")
def bank_remove(
    model_dir: ModelDir,
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="As predictions name them.")],
    dry_run: DryRun = False,
) -> None:
    """Remove texts, and their states."""
    from launchers.bank import remove

    remove(model_dir, ids, dry_run)


@bank_app.command("verify")
def bank_verify(model_dir: ModelDir) -> None:
    """Hash every byte of a model folder; exit code 1 names what has changed."""
    from launchers.bank import verify

    verify(model_dir)


@models_app.command()
def predict(
    model_dir: ModelDir,
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="Lines to answer; - is standard input.", show_default=False)
    ] = Path("-"),
    batch_size: BatchSize = 32,
    references: References = None,
    runtime: RuntimeName = "torch",
    device: Device = None,
    dtype: Dtype = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile: for large files.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open the model and stop before reading texts.")] = False,
) -> None:
    """Texts, one a line (a tab between the sentences of a pair); one JSON object a line on stdout."""
    from launchers.predict import predict

    options = {
        "references": references,
        "batch_size": batch_size,
        "runtime": runtime,
        "dtype": dtype,
        "compiled": compiled,
    }
    predict(model_dir, source, dry_run, device, **options)


@models_app.command()
def serve(
    model_dir: ModelDir,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen at; one that others reach needs a token.")] = "127.0.0.1",
    token_file: Annotated[Path | None, typer.Option(help="File with the token that requests must carry.")] = None,
    batch_size: BatchSize = 32,
    references: References = None,
    runtime: RuntimeName = "torch",
    device: Device = None,
    dtype: Dtype = "float32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open the model, and do not listen.")] = False,
) -> None:
    """A prediction server: POST /predict {"texts": [["a", "b"]]}; requests that come together are answered together."""
    from launchers.predict import serve

    options = {"references": references, "batch_size": batch_size, "runtime": runtime, "dtype": dtype}
    serve(model_dir, host, port, token_file, dry_run, device, **options)
