"""GLUE's original files: tab-separated, unquoted, each task with columns of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refbert_dist.data.glue import Row, Rows, TaskSpec, check_place
from refbert_dist.data.lines import numbered_lines
from refbert_dist.errors import UserError

INDEX_COLUMNS = ("index", "id")
"""What GLUE calls the number of a row."""


def read_tsv(path: Path, spec: TaskSpec, field: str, labelled: bool) -> Rows:
    """Split on tabs only: in GLUE's files a quotation mark is a character like any other.

    Without ``labelled`` the file has GLUE's layout of tests: it begins with the names of its columns, a label that it
    may have is not read, and every row counts, because each is to be answered.
    Raises :class:`UserError` naming ``field``, the file and the line.
    """
    columns: Sequence[str] = spec.columns
    rows: list[Row] = []
    broken = 0
    for number, line in numbered_lines(path, field):
        if not line:
            continue
        where = f"{field}: {path} line {number}"
        cells = line.split("\t")
        if number == 1 and (spec.has_header or not labelled):
            columns = _header(cells, spec, where, labelled)
            continue
        fault = _fault(cells, columns, spec, labelled)
        if fault and labelled and broken < spec.broken_rows:
            broken += 1
            continue
        if fault:
            raise UserError(f"{where} {fault}")
        values = dict(zip(columns, cells, strict=True))
        if not labelled:
            for name in set(INDEX_COLUMNS) & values.keys():
                check_place(values[name], len(rows), where)
        texts = [values[name].strip() for name in spec.text_columns]
        label = _label(values[spec.label_column], spec, where) if labelled else None
        rows.append((texts[0], texts[1] if spec.is_pair else None, label))
    if not rows:
        raise UserError(f"{field}: {path} holds no rows; give a file with {'labelled' if labelled else 'test'} rows")
    return Rows(rows, broken)


def _header(cells: Sequence[str], spec: TaskSpec, where: str, labelled: bool) -> Sequence[str]:
    missing = [name for name in (*spec.text_columns, *([spec.label_column] * labelled)) if name not in cells]
    if missing:
        known = spec.columns if labelled else ("index", *spec.text_columns)
        kind = "" if labelled else " in a test file"
        raise UserError(
            f"{where} is not {spec.name}'s header{kind}, it lacks '{missing[0]}'; its columns are {', '.join(known)}"
        )
    return cells


def _fault(cells: Sequence[str], columns: Sequence[str], spec: TaskSpec, labelled: bool) -> str | None:
    """What is wrong with a row; a sentence to be answered may be empty, as it may be for a finished model."""
    if len(cells) != len(columns):
        return f"has {len(cells)} tab-separated columns, not {len(columns)}; {spec.name} has {', '.join(columns)}"
    texts = [cell for name, cell in zip(columns, cells, strict=True) if name in spec.text_columns]
    if labelled and not all(text.strip() for text in texts):
        return "has an empty sentence; fill it in or remove the line"
    return None


def _label(text: str, spec: TaskSpec, where: str) -> float:
    label = spec.label_of(text)
    if label is None:
        raise UserError(f"{where} has the label '{text}'; {spec.name} allows {spec.allowed_labels}")
    return label
