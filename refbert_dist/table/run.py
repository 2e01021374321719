"""What happens around the runs of a table's cells: checks before, rows after each, tables and page at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from refbert_dist import pipeline
from refbert_dist.artifacts import hash_strings, make_folder, read_json, write_text
from refbert_dist.cache.models import is_saved, task_teacher, training_record
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.costs.budget import training_gflop
from refbert_dist.data.tokens import parts, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.rundir import EXPERIMENT, TABLE, check_takes_on, is_in_use, stored_experiment, take_on
from refbert_dist.table.config import Cell, Table
from refbert_dist.table.rows import Row, add_rows, own_rows, settings_key
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.provenance import FILE_NAME, write_provenance

TARGETS = ("evaluate",)
"""What a cell is run for: nothing is exported."""
AHEAD = ("cache-task",)
"""What a cell can be run for while another makes what all share, students of the general stage above all."""
TEACHER = "teacher"
COMMIT_DIGITS = 12


def check(table: Table) -> None:
    """Raise UserError for all that can be known to be wrong before a cell is run."""
    run_dir = table.run_dir
    if (run_dir / EXPERIMENT).exists():
        raise UserError(f"run.dir '{run_dir}' holds a run or a search; choose another run.dir for the table")
    for task in table.tasks:
        for variant in (None, *table.variants):
            try:
                pipeline.check(table.experiment_of(task, variant), TARGETS)
            except UserError as error:
                raise UserError(f"tasks.{task}{f', variants.{variant}' if variant else ''}: {error}") from None
    for cell in settled(table):
        folder = cell.experiment.run.dir
        if (folder / EXPERIMENT).exists():
            check_takes_on(stored_experiment(folder), cell.experiment)
    own_rows(table)


def begin(table: Table) -> None:
    """Check a table and note it in its run directory; a cell that was begun takes on systems that are new."""
    check(table)
    make_folder(table.run_dir)
    write_text(table.run_dir / TABLE, to_yaml(table))
    write_provenance(table.run_dir)
    for cell in settled(table):
        take_on(cell.experiment)


def settled(table: Table) -> list[Cell]:
    """The cells of tasks whose rates are known."""
    return [cell for cell in table.cells if cell.task not in table.undecided]


def is_done(cell: Cell) -> bool:
    """Whether nothing of a cell is left to run."""
    return not pipeline.missing_stages(cell.experiment, TARGETS)


def under_way(cells: Iterable[Cell]) -> list[Cell]:
    """Those that a command is at work on, this one or another."""
    return [cell for cell in cells if is_in_use(cell.experiment.run.dir)]


def next_cell(cells: Sequence[Cell]) -> tuple[Cell, tuple[str, ...]] | None:
    """An unfinished cell, and what to run it for: the first that nobody is at work on, nor on anything that it shares.

    Where all have to wait for others, one of which its task's own teacher and states can be made meanwhile. None where
    there is nothing of the kind, either.
    """
    others = under_way(cells)
    taken = {cell.name for cell in others}
    made = set[Path]().union(*(_missing(cell, TARGETS) for cell in others))
    for targets in (TARGETS, AHEAD):
        for cell in cells:
            if cell.name in taken or not pipeline.missing_stages(cell.experiment, targets):
                continue
            if made.isdisjoint(_missing(cell, targets)):
                return cell, targets
    return None


def _missing(cell: Cell, targets: Iterable[str]) -> set[Path]:
    """What a cell would leave in the cache, for others as well."""
    stages = pipeline.missing_stages(cell.experiment, targets)
    return set[Path]().union(*(pipeline.products(cell.experiment, stage.name) for stage in stages))


def collect(table: Table, cell: Cell) -> list[str]:
    """Add the rows of a finished cell to the CSV file; returns a sentence for each that has another score there."""
    pipeline.register(cell.experiment)
    return add_rows(table.csv_path, rows_of(table, cell))


def rows_of(table: Table, cell: Cell) -> list[Row]:
    """The rows of a finished cell. What only the cache tells is empty where that is gone."""
    exp = cell.experiment
    tokens = [tokens_artifact(exp, part) for part in parts(exp)]
    there = all(artifact.complete for artifact in tokens) and is_saved(task_teacher(exp))
    common: dict[str, Any] = {
        "title": table.title,
        "task": cell.task,
        "teacher": Path(exp.teacher.model).name,
        "student": f"{exp.student.layers} x {exp.student.hidden}",
        "corpus": Path(exp.corpus.path).name if exp.corpus else "",
        "train": tokens_artifact(exp, "train").manifest()["samples"] if there else None,
        "data": _data(exp) if there else "",
        "commit": _commit(exp.run.dir),
    }
    results = [row for row in read_json(exp.run.dir / "results.json") if cell.row_name(row["system"])]
    gflop = {system: _gflop(exp, system) if there else None for system in {result["system"] for result in results}}
    rows = []
    for result in results:
        system = result["system"]
        own: dict[str, Any] = {"system": cell.row_name(system), "seed": cell.seed_of(system)}
        own["settings"] = settings_key(exp, system)
        own |= {name: result[name] for name in ("metric", "score", "n")}
        own |= {name: result.get(name) for name in ("references", "params", "steps", "samples", "seconds")}
        rows.append(Row(**common, **own, gflop=gflop[system]))
    return rows


def _gflop(exp: Experiment, system: str) -> float | None:
    if system not in (TEACHER, *exp.systems):
        return None
    return round(training_gflop(exp, next((name for name in exp.systems if name == system), None)), 1)


def _data(exp: Experiment) -> str:
    """Of the contents that the settings only name."""
    sources = training_record(task_teacher(exp))["sources"]
    contents = [tokens_artifact(exp, part).manifest()["fingerprint"] for part in parts(exp)]
    return hash_strings([*contents, *(source["xxh3"] for source in sources)])[:16]


def _commit(run_dir: Path) -> str:
    """Of the code that the run was started with last."""
    starts = read_json_or_none(run_dir / FILE_NAME) or [{}]
    commit = starts[-1].get("commit") or ""
    return commit[:COMMIT_DIGITS] + ("+" if commit and starts[-1].get("dirty") else "")
