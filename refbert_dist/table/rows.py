"""The rows of a table: a CSV file that is small enough to be committed, and each of whose rows can be read alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from refbert_dist.artifacts import recipe_key, write_text
from refbert_dist.cache.models import TRAINING_VERSION
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError
from refbert_dist.rundir import MAY_CHANGE
from refbert_dist.table.config import METHOD, Table, variant_of
from refbert_dist.tracking.files import locked

UNTIL = "distill.general.until"
"""A run may go on from there; scores of before and after are not those of one table."""
UNIMPORTANT = (
    *(name for name in MAY_CHANGE if name != UNTIL),
    "systems",
    "evaluate",
    "task.path",
    "task.title",
    "distill.seed",
    "distill.rate_factors",
)
"""Settings that do not change a score, or by which the rows of a table differ."""
NAMES = (("teacher", "model"), ("corpus", "path"), ("student", "init"))
"""Settings that may be paths, of which only the last part counts."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score, and what is to be known of it."""

    title: str
    """Of the table."""
    task: str
    system: str
    seed: int
    """Of a student its own (``distill.seed``); of anything else that of the experiment."""
    metric: str
    score: float
    n: int
    """Rows that were scored."""
    references: int | None
    """That are read for each input."""
    params: int | None
    steps: int | None
    """Optimizer steps, over all stages."""
    samples: int | None
    """Samples in them."""
    seconds: float | None
    """Of training."""
    gflop: float | None
    """Of training, from formulas; see :mod:`refbert_dist.costs.budget`."""
    teacher: str
    student: str
    """Layers x width."""
    corpus: str
    """Of the general stage; empty without one."""
    train: int | None
    """Rows of the task to train on."""
    settings: str
    """Fingerprint of all settings that count, seed of the student apart."""
    data: str
    """Fingerprint of the contents of corpus, task and teacher."""
    commit: str
    """Of the code; with ``+`` if it was changed."""

    @property
    def identity(self) -> tuple[str | int, ...]:
        """What no two rows have in common."""
        return (self.title, self.task, self.system, self.seed, self.metric, self.settings)


COLUMNS = tuple(field.name for field in fields(Row))
KINDS = {
    **dict.fromkeys(("seed", "n", "references", "params", "steps", "samples", "train"), int),
    **dict.fromkeys(("score", "seconds", "gflop"), float),
}

NEEDED = ("seed", "n", "score")
"""Numbers that every row has."""


def settings_key(exp: Experiment, system: str) -> str:
    """Fingerprint of what decides the scores of a system of an experiment, but for the seed of the students.

    Defaults are left out, so that a setting that is added later leaves the fingerprints of older rows as they are.
    """
    kept: dict[str, Any] = exp.model_dump(mode="json", exclude_defaults=True)
    for section, field in NAMES:
        if field in kept.get(section, {}):
            kept[section][field] = Path(kept[section][field]).name
    for name in UNIMPORTANT:
        *parents, leaf = name.split(".")
        place: Any = kept
        for parent in parents:
            place = place.get(parent, {})
        place.pop(leaf, None)
    if (factor := exp.distill.rate_factor(system)) != 1.0:
        kept["rate_factor"] = factor
    return recipe_key("table-row", {"version": TRAINING_VERSION, **{name: kept[name] for name in kept if kept[name]}})


def read_rows(path: Path) -> list[Row]:
    """All rows of a CSV file; none where there is no file. Raises UserError for a file of another kind."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"csv is '{path}', which cannot be read as text; name another file") from None
    reader = csv.reader(io.StringIO(text))
    if tuple(next(reader, ())) != COLUMNS:
        raise UserError(f"csv is '{path}', whose first line is not that of a table's rows; name another file")
    try:
        return [_row(values) for values in reader]
    except ValueError:
        raise UserError(
            f"csv is '{path}', whose line {reader.line_num} is not a row of a table; mend it, or name another file"
        ) from None


def _row(values: Sequence[str]) -> Row:
    given = dict(zip(COLUMNS, values, strict=True))
    return Row(**{name: _value(name, text) for name, text in given.items()})


def _value(name: str, text: str) -> Any:
    if name not in KINDS:
        return text
    return KINDS[name](text) if text or name in NEEDED else None


def add_rows(path: Path, rows: Iterable[Row]) -> list[str]:
    """Add to a CSV file the rows that it lacks; returns a sentence for each that stands there with another score.

    Rows that stand are never changed, so that a second run with the same settings is a check of the first.
    """
    with locked(path):
        standing = {row.identity: row for row in read_rows(path)}
        found = dict(standing)
        conflicts = []
        for row in rows:
            before = found.setdefault(row.identity, row)
            if before.score != row.score:
                conflicts.append(
                    f"{row.metric} of {row.system} on {row.task}, seed {row.seed}: {before.score:g} stands there, of "
                    f"commit {before.commit or 'unknown'}, and {row.score:g} came out now"
                )
        if len(found) > len(standing):
            write_text(path, _text(found.values()))
    return conflicts


def _text(rows: Iterable[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return stream.getvalue()


def own_rows(table: Table) -> list[Row]:
    """The rows of a table's CSV file that are of its title, tasks and variants, wherever they were made.

    Of a task whose rates are not chosen there are none. Raises UserError where some of them were made with other
    settings, or the file is of another kind.
    """
    experiments = {
        (task, variant): table.experiment_of(task, variant)
        for task in table.tasks
        if task not in table.undecided
        for variant in (None, *table.variants)
    }
    mine = [
        row
        for row in read_rows(table.csv_path)
        if row.title == table.title and (row.task, variant_of(row.system)) in experiments
    ]
    keys: dict[tuple[str, str], str] = {}
    for task, system in {(row.task, row.system) for row in mine}:
        variant = variant_of(system)
        keys[task, system] = settings_key(experiments[task, variant], METHOD if variant else system)
    for row in mine:
        _require_settings(table, row, keys[row.task, row.system])
    return mine


def _require_settings(table: Table, row: Row, key: str) -> None:
    if row.settings != key:
        variant = variant_of(row.system)
        of = f"{row.task}, variant {variant}," if variant else row.task
        raise UserError(
            f"csv is '{table.csv_path}', whose rows of {of} under the title '{table.title}' were made with other "
            f"settings (fingerprint {row.settings} there, {key} here); give this table another title or csv"
        )
