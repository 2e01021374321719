"""What a table says: means over seeds, differences with intervals, and both beside the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np

from refbert_dist.config import SYSTEM_LABELS, SystemName, system_label
from refbert_dist.table.answers import TaskScores, task_scores
from refbert_dist.table.config import METHOD, Table, variant_of
from refbert_dist.table.estimates import Estimate, Pair, estimate
from refbert_dist.table.rows import Row, own_rows
from refbert_dist.table.statistics import RESAMPLES

BASELINE, TEACHER = "tinybert", "teacher"
AVERAGE = "average"
"""Over all tasks of the table; there is none where one of them lacks what it is of."""
CLAIMED_GAIN, CLAIMED_SHARE = 0.081, 0.94
"""RefBERT's claims (arXiv 2106.08898, abstract): over vanilla TinyBERT on GLUE, and of BERT-base's score."""


@dataclass(frozen=True)
class Spread:
    """A score over the seeds of a system."""

    points: tuple[float, ...]
    """One for each seed."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.points))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1); None of a single one."""
        return float(np.std(self.points, ddof=1)) if len(self.points) > 1 else None


@dataclass(frozen=True)
class Summary:
    """The rows of a table, and what follows from them."""

    table: Table
    rows: Sequence[Row]
    by_task: Mapping[str, TaskScores]
    """Of the tasks that have rows, in the order of the table."""

    @cached_property
    def systems(self) -> list[str]:
        """All that have rows: the teacher first, then as in other tables, what has no label last.

        Variants stand behind RefBERT, in the table's order.
        """
        known, variants = list(SYSTEM_LABELS), list(self.table.variants)

        def place(name: str) -> tuple[int, int]:
            variant = variant_of(name)
            if variant:
                return known.index(METHOD), 1 + variants.index(variant)
            return (known.index(name) if name in known else len(known)), 0

        return sorted(dict.fromkeys(row.system for row in self.rows), key=place)

    @property
    def students(self) -> list[str]:
        """Those of the systems that are trained with seeds of their own."""
        return [system for system in self.systems if variant_of(system) or system in get_args(SystemName)]

    @property
    def tasks(self) -> list[str]:
        """That have rows."""
        return list(self.by_task)

    def label(self, system: str) -> str:
        """For people."""
        references = next(row.references for row in self.rows if row.system == system)
        variant = variant_of(system)
        return system_label(METHOD if variant else system, references) + (f", {variant}" if variant else "")

    def rows_of(self, task: str, system: str) -> list[Row]:
        """Of a system on a task; one for each seed and metric."""
        return [row for row in self.rows if (row.task, row.system) == (task, system)]

    def score(self, task: str, system: str) -> Spread | None:
        """The mean of the task's metrics, over seeds."""
        found = self.by_task[task]
        points = tuple(found.by_member[system, seed] for seed in found.seeds(system))
        return Spread(points) if points else None

    def metric(self, task: str, system: str, metric: str) -> Spread | None:
        """One metric over seeds."""
        points = tuple(row.score for row in self.rows_of(task, system) if row.metric == metric)
        return Spread(points) if points else None

    def average(self, system: str) -> float | None:
        """Mean of a system's scores over all tasks."""
        found = [self.score(task, system) for task in self.tasks]
        return float(np.mean([score.mean for score in found if score])) if self._all_have(found) else None

    def difference(self, system: str, other: str) -> dict[str, Estimate]:
        """By task, and for all as AVERAGE: how much better ``system`` scores than ``other`` with the same seeds.

        A task is left out where they have no seed in common.
        """
        found = {task: pair for task in self.tasks if (pair := self._pair(task, system, other))}
        by_task = {task: estimate(lambda a, b: a - b, [pair]) for task, pair in found.items()}
        if self._all_have(list(found.values())) and len(found) == len(self.tasks):
            by_task[AVERAGE] = estimate(lambda a, b: a - b, list(found.values()))
        return by_task

    def gain(self, system: str, other: str) -> Estimate | None:
        """By which share the average of ``system`` is above that of ``other``, over seeds that both have."""
        pairs = [pair for task in self.tasks if (pair := self._pair(task, system, other))]
        return estimate(lambda a, b: a / b - 1, pairs) if len(pairs) == len(self.tasks) else None

    def share(self, system: str, tasks: Sequence[str] | None = None) -> Estimate | None:
        """Which share of the teacher's score a system has, on average over ``tasks`` (None: all)."""
        wanted = self.tasks if tasks is None else tasks
        pairs = [pair for task in wanted if (pair := self._beside_teacher(task, system))]
        return estimate(lambda a, b: a / b, pairs) if len(pairs) == len(wanted) else None

    @staticmethod
    def _all_have(found: Sequence[object]) -> bool:
        return bool(found) and all(each is not None for each in found)

    def _pair(self, task: str, system: str, other: str) -> Pair | None:
        scores = self.by_task[task]
        seeds = sorted(set(scores.seeds(system)) & set(scores.seeds(other)))
        return Pair.of(scores, [(system, seed) for seed in seeds], [(other, seed) for seed in seeds])

    def _beside_teacher(self, task: str, system: str) -> Pair | None:
        scores = self.by_task[task]
        teacher = [(TEACHER, seed) for seed in scores.seeds(TEACHER)][:1]
        own = [(system, seed) for seed in scores.seeds(system)]
        return Pair.of(scores, own, teacher * len(own))


def summarise(table: Table) -> Summary:
    """From the CSV file of a table, and the answers that lie in its run directory."""
    rows = own_rows(table)
    by_task = {task: [row for row in rows if row.task == task] for task in table.tasks}
    found = {task: task_scores(table, task, mine, RESAMPLES) for task, mine in by_task.items() if mine}
    return Summary(table, rows, found)
