"""What the systems of a table answered, row by row, and their scores when rows are drawn anew."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refbert_dist.artifacts import map_tensors
from refbert_dist.data.tasks import Split
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.stages.scores import SUFFIXES, answers_path, predictions_of, scores
from refbert_dist.table.config import METHOD, Table, variant_of
from refbert_dist.table.rows import Row
from refbert_dist.table.statistics import RESAMPLED, resampled_scores

Member = tuple[str, int]
"""System and seed."""
TOLERANCE = 2e-6
"""Between a score and the same one computed again: scores are kept with six digits."""


@dataclass(frozen=True)
class TaskScores:
    """A task's scores, each the mean of its metrics as GLUE has it, between 0 and 1 (correlations: -1 and 1)."""

    metrics: tuple[str, ...]
    by_member: Mapping[Member, float]
    """Of every system and seed in the CSV file."""
    drawn: Mapping[Member, np.ndarray]
    """The same when rows are drawn anew, ``[R]``; of those whose answers are there."""
    draw: tuple[int, ...]
    """What seeds are drawn with."""

    def seeds(self, system: str) -> list[int]:
        """Seeds that a system has."""
        return sorted(seed for name, seed in self.by_member if name == system)


def task_scores(table: Table, task: str, rows: Sequence[Row], resamples: int) -> TaskScores:
    """Of one task; ``rows``: its rows in the CSV file.

    Draws depend on the task and its number of rows alone, so that no system changes what is found of the others.
    """
    metrics = tuple(dict.fromkeys(row.metric for row in rows))
    kept: dict[Member, dict[str, float]] = {}
    for row in rows:
        kept.setdefault((row.system, row.seed), {})[row.metric] = row.score
    whole = {member: found for member, found in kept.items() if len(found) == len(metrics)}
    by_member = {member: float(np.mean(list(found.values()))) for member, found in whole.items()}
    draw = (zlib.crc32(task.encode()),)
    return TaskScores(metrics, by_member, _drawn(table, task, whole, draw, resamples), draw)


def _drawn(
    table: Table, task: str, whole: Mapping[Member, Mapping[str, float]], draw: tuple[int, ...], resamples: int
) -> dict[Member, np.ndarray]:
    """Scores on drawn rows ``[R]``; MNLI's two dev sets are drawn independently."""
    total: dict[Member, np.ndarray] = {}
    for place, (part, suffix) in enumerate(SUFFIXES.items()):
        known = {member: _of_part(found, suffix) for member, found in whole.items()}
        names = next(iter(known.values()), {})
        if not names:
            continue
        gold = _gold(table, task, part)
        if gold is None or not set(names) <= set(RESAMPLED):
            return {}
        answered = dict(_answers(table, task, part, known, gold))
        if not answered:
            return {}
        values = resampled_scores(list(names), np.stack(list(answered.values())), gold, resamples, (*draw, place))
        found = dict(zip(answered, values.T * len(names), strict=True))
        total = {member: found[member] + total.get(member, 0.0) for member in found if not total or member in total}
    count = len(next(iter(whole.values()), {}))
    return {member: values / count for member, values in total.items()}


def _of_part(found: Mapping[str, float], suffix: str) -> dict[str, float]:
    """The scores on one part, by the metric's own name."""
    others = [other for other in SUFFIXES.values() if other and other != suffix]
    mine = {name: score for name, score in found.items() if name.endswith(suffix) and not name.endswith(tuple(others))}
    return {name.removesuffix(suffix): score for name, score in mine.items()}


def _gold(table: Table, task: str, part: Split) -> np.ndarray | None:
    """Labels of the evaluated rows ``[N]``; None where the cache no longer has them."""
    artifact = tokens_artifact(table.experiments[task], part)
    return TokenSet.open(artifact).labels if artifact.complete else None


def _answers(
    table: Table, task: str, part: Split, known: Mapping[Member, Mapping[str, float]], gold: np.ndarray
) -> Iterator[tuple[Member, np.ndarray]]:
    """Predictions ``[N]`` that are there, and give the scores in the CSV file: those may be of another machine."""
    seen: set[Member] = set()
    systems = dict.fromkeys(METHOD if variant_of(system) else system for system, _ in known)
    for cell in (cell for cell in table.cells if cell.task == task):
        for system in systems:
            path = answers_path(cell.experiment.run.dir, system, part)
            member = (cell.row_name(system) or "", cell.seed_of(system))
            if member not in known or member in seen or not path.exists():
                continue
            logits = map_tensors(path)["logits"]
            if len(logits) != len(gold):
                continue
            found = scores(list(known[member]), logits, gold)
            if all(abs(found[metric] - score) < TOLERANCE for metric, score in known[member].items()):
                seen.add(member)
                yield member, predictions_of(logits).astype(np.float64)
