"""``refbert bank``: the texts that a finished model reads beside its input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from launchers.readable import size
from refbert_dist.errors import UserError
from refbert_dist.inference.lines import parse_lines
from refbert_dist.inference.new_texts import BankEditor
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.references.guards import TextPair
from refbert_dist.tracking.quiet import quiet_libraries


def show(model_dir: Path, ids: Iterable[int]) -> None:
    """What a bank holds, or the texts of some of its references."""
    bank = BankEditor(model_dir).open()
    said = bank.description
    rows = {int(number): row for row, number in enumerate(bank.ids)}
    for number in ids:
        if number not in rows:
            raise UserError(f"{bank.folder} has no reference {number}; give ids that predictions name")
        if said.texts != "kept":
            raise UserError(f"{bank.folder} was written without texts; export the model with export.bank_texts=true")
        typer.echo("\t".join(part for part in (str(number), *bank.texts[rows[number]]) if part is not None))
    if not ids:
        stored = sum(item["bytes"] for item in said.files.values())
        typer.echo(
            f"{len(bank):,} texts ({said.texts}), ids {bank.ids[0]} to {bank.ids[-1]}; looked up by {said.retriever}, "
            f"{said.count} read for each input, {said.max_length} tokens at most; {said.codec}, {size(stored)}"
        )


def add(model_dir: Path, source: Path, teacher: str, rebuild: bool, dry_run: bool) -> None:
    """Add the lines of a file, or put them in the place of all that is there."""
    quiet_libraries()
    editor = BankEditor(model_dir)
    texts = _read(source)
    what = f"{len(texts):,} texts to {model_dir}" if not rebuild else f"all of {model_dir} by {len(texts):,} texts"
    if dry_run:
        typer.echo(f"would {'replace' if rebuild else 'add'} {what}")
        return
    ids = editor.rebuild(texts, teacher) if rebuild else editor.add(texts, teacher)
    typer.echo(f"{'replaced' if rebuild else 'added'} {what}: ids {ids[0]} to {ids[-1]}")


def remove(model_dir: Path, ids: list[int], dry_run: bool) -> None:
    """Remove references by id."""
    quiet_libraries()
    if not dry_run:
        BankEditor(model_dir).remove(ids)
    typer.echo(f"{'would remove' if dry_run else 'removed'} {len(set(ids)):,} texts from {model_dir}")


def verify(model_dir: Path) -> None:
    """Hash every file of a model folder, its bank's states included."""
    quiet_libraries()
    pipeline = RefBertPipeline(model_dir, device="cpu")
    if pipeline.bank is not None:
        pipeline.bank.verify()
    typer.echo(f"{model_dir} is as it was written")


def _read(source: Path) -> list[TextPair]:
    try:
        with source.open(encoding="utf-8", errors="strict") as lines:
            return list(parse_lines(lines))
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give a file of lines") from None
