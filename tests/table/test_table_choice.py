"""Rates that are chosen on held-out rows: a table of the same students at each rate, and what follows from its rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tables import fabricate, finish, table_file

from refbert_dist.errors import UserError
from refbert_dist.rundir import take_on
from refbert_dist.table import run
from refbert_dist.table.choice import choice_of, decide, held_out_scores
from refbert_dist.table.config import Table, load_table, stored_table
from refbert_dist.table.page import write_table
from refbert_dist.table.rows import add_rows, own_rows, read_rows

CHOOSE = {"rates": [1, 2, 0.5], "held_out": 0.2, "seeds": 2}
VARIANTS = {"one": {"references.count": 1}}
SCORES = {
    "tinybert": {1: 0.5, 2: 0.7, 0.5: 0.6},
    "refbert": {1: 0.8, 2: 0.8, 0.5: 0.1},
    "refbert:one": {1: 0.2, 2: 0.2, 0.5: 0.9},
}


def file(root: Path, **changes: Any) -> Path:
    return table_file(root, **{"choose": CHOOSE, "variants": VARIANTS, **changes})


def with_held_out_rows(root: Path, left_out: tuple[str, int] | None = None, **changes: Any) -> Table:
    """A table whose choice has rows with SCORES, as its cells would leave them; seeds lie 0.1 apart on either side."""
    table = load_table(file(root, **changes))
    choice = choice_of(table)
    assert choice
    # It prepares the task, too, for all tests.
    other = root.parent / f"{root.name}-other"
    other.mkdir()
    pattern = read_rows(fabricate(table_file(other)).csv_path)[0]
    for cell in choice.cells:
        rate = cell.experiment.distill.rate_factor(cell.experiment.systems[0])
        for system in cell.experiment.systems:
            if not (name := cell.row_name(system)) or (name, cell.seed) == left_out:
                continue
            score = SCORES[name][rate] + (0.1 if cell.seed else -0.1)
            keys = {"title": choice.title, "task": cell.task, "system": name, "seed": cell.seed, "score": score}
            row = replace(pattern, **keys, settings=run.settings_key(cell.experiment, system))  # type: ignore[arg-type]
            add_rows(table.csv_path, [row])
    return table


def test_every_student_is_held_out_at_every_rate(tmp_path: Path) -> None:
    table = load_table(file(tmp_path))
    choice = choice_of(table)
    assert choice and choice_of(choice) is None
    assert (choice.run_dir, choice.csv_path) == (table.run_dir / "choice", table.csv_path)
    assert list(choice.tasks) == ["MRPC-x1", "MRPC-x2", "MRPC-x0_5"] and len(choice.cells) == 3 * 2 * 2
    for cell in choice.cells:
        exp = cell.experiment
        assert exp.task and exp.task.name == "MRPC" and exp.task.held_out == 0.2
        rate = {"MRPC-x1": 1, "MRPC-x2": 2, "MRPC-x0_5": 0.5}[cell.task]
        assert [exp.distill.rate_factor(system) for system in exp.systems] == [rate] * len(exp.systems)
    assert choice_of(load_table(table_file(tmp_path))) is None


def test_each_student_takes_its_best_rate(tmp_path: Path) -> None:
    table = with_held_out_rows(tmp_path)
    assert table.undecided == ("MRPC",) and run.settled(table) == []
    assert held_out_scores(table)["MRPC", "tinybert"] == pytest.approx(SCORES["tinybert"])
    found = decide(table)
    # Of equals the first.
    assert found.rate_factors == {"MRPC": {"refbert": 1, "tinybert": 2, "one": 0.5}}
    assert found.undecided == () and run.settled(found) == list(found.cells)
    factors = {cell.name: cell.experiment.distill.rate_factors for cell in found.cells if cell.seed == 0}
    assert factors == {"MRPC-seed0": {"tinybert": 2}, "MRPC-seed0-one": {"refbert": 0.5}}
    exp = found.experiments["MRPC"]
    assert exp.task and not exp.task.held_out
    usual = exp.distill.prediction.learning_rate
    rates = {system: exp.distill.optim("prediction", system).learning_rate for system in exp.systems}
    assert rates == {"refbert": usual, "tinybert": 2 * usual}


def test_nothing_is_decided_before_all_rates_are_there(tmp_path: Path) -> None:
    table = with_held_out_rows(tmp_path, left_out=("refbert:one", 1))
    found = decide(table)
    assert found.rate_factors == {"MRPC": {"refbert": 1, "tinybert": 2}}
    assert found.undecided == ("MRPC",) and own_rows(found) == [] and run.settled(found) == []


def test_the_page_shows_how_rates_were_chosen(tmp_path: Path) -> None:
    found = decide(with_held_out_rows(tmp_path))
    run.begin(found)
    for cell in found.cells:
        finish(cell, {"teacher": 0.9, "tinybert": 0.6, "refbert": 0.8, "one": 0.8})
        run.collect(found, cell)
    text = write_table(found)
    assert "## Rates" in text and "on 20 % of the training rows" in text and "mean over 2 seeds" in text
    assert "| MRPC | TinyBERT | 50.0 | [70.0] | 60.0 |" in text
    assert "| MRPC | RefBERT k=2, one | 20.0 | 20.0 | [90.0] |" in text
    assert "## Rates" in write_table(stored_table(found.run_dir))
    assert decide(stored_table(found.run_dir)).rate_factors == found.rate_factors


def test_a_cell_takes_on_a_system_with_its_rate_but_no_other_rate(tmp_path: Path) -> None:
    fabricate(table_file(tmp_path, rate_factors={"MRPC": {"refbert": 2}}), "systems=[refbert]")
    grown = load_table(table_file(tmp_path, rate_factors={"MRPC": {"refbert": 2, "tinybert": 4}}))
    run.check(grown)
    take_on(grown.cells[0].experiment)
    changed = load_table(table_file(tmp_path, rate_factors={"MRPC": {"refbert": 4, "tinybert": 4}}))
    with pytest.raises(UserError, match=r"distill.rate_factors.refbert is 2.0 there and 4.0 here"):
        run.check(changed)


def test_a_factor_of_one_changes_nothing(tmp_path: Path) -> None:
    plain = load_table(table_file(tmp_path))
    ones = load_table(table_file(tmp_path, rate_factors={"MRPC": {"refbert": 1, "tinybert": 1}}))
    assert [cell.experiment for cell in ones.cells] == [cell.experiment for cell in plain.cells]
    changed = load_table(
        table_file(tmp_path, rate_factors={"MRPC": {"refbert": 1}}), ["distill.rate_factors={refbert: 3, tinybert: 2}"]
    )
    assert changed.experiments["MRPC"].distill.rate_factors == {"tinybert": 2}
