"""The rate of each student, chosen on held-out rows of train, so that dev is read for final models alone.

What is compared is itself a table: the same students, each task once for every rate, on rows that the teacher was not
fine-tuned on and that nothing reads as references. So every system has the same grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from refbert_dist.config import parse_model
from refbert_dist.config.load import apply_overrides
from refbert_dist.table.config import Cell, Table, variant_of
from refbert_dist.table.rows import own_rows

FOLDER = "choice"
"""In the run directory of a table."""


def choice_of(table: Table) -> Table | None:
    """The table on whose scores the rates are chosen; None where there is nothing to choose."""
    if not table.choose:
        return None
    tasks, factors = {}, {}
    for task, changes in table.tasks.items():
        for rate in table.choose.rates:
            name = place(task, rate)
            own = {"name": task, **changes.get("task", {}), "held_out": table.choose.held_out}
            tasks[name] = {**changes, "task": own}
            factors[name] = dict.fromkeys(table.names, rate)
    data = table.model_dump(mode="json") | {
        "title": f"{table.title}, held out",
        "tasks": tasks,
        "seeds": list(table.choose.seeds),
        "choose": None,
        "rate_factors": factors,
        "csv": str(table.csv_path),
    }
    folder = json.dumps(str(table.run_dir / FOLDER))
    return parse_model(Table, apply_overrides(data, [f"experiment.run.dir={folder}"]))


def all_cells(table: Table) -> tuple[Cell, ...]:
    """The cells of a table, behind those on whose scores its rates are chosen."""
    choice = choice_of(table)
    return (*(choice.cells if choice else ()), *table.cells)


def place(task: str, rate: float) -> str:
    """What a task is called at a rate."""
    return f"{task}-x{rate:g}".replace(".", "_")


def held_out_scores(table: Table) -> dict[tuple[str, str], dict[float, float]]:
    """By task and student: rate -> score on held-out rows, the mean of metrics and seeds; of rates that have all."""
    choice = choice_of(table)
    if not choice or not table.choose:
        return {}
    points: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in own_rows(choice):
        name = variant_of(row.system) or row.system
        points.setdefault((row.task, name), {}).setdefault(row.seed, []).append(row.score)
    found: dict[tuple[str, str], dict[float, float]] = {}
    for task in table.tasks:
        for name in table.names:
            for rate in table.choose.rates:
                by_seed = points.get((place(task, rate), name), {})
                if by_seed.keys() >= {*table.choose.seeds}:
                    means = [np.mean(by_seed[seed]) for seed in table.choose.seeds]
                    found.setdefault((task, name), {})[rate] = float(np.mean(means))
    return found


def decide(table: Table) -> Table:
    """The table with the rates that its held-out rows have chosen, of students whose rows are all there."""
    if not table.choose:
        return table
    chosen: dict[str, dict[str, float]] = {}
    for (task, name), by_rate in held_out_scores(table).items():
        if len(by_rate) == len(table.choose.rates):
            chosen.setdefault(task, {})[name] = best(by_rate)
    return parse_model(Table, table.model_dump(mode="json") | {"rate_factors": chosen})


def best(by_rate: Mapping[float, float]) -> float:
    """The rate with the highest score."""
    return max(by_rate, key=lambda rate: by_rate[rate])
