"""Which trials nothing else beats, and which of them to take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refbert_dist.errors import UserError
from tune.config import SHAPES, Search


@dataclass(frozen=True)
class Objective:
    """A figure of trials, and which way is better."""

    name: str
    larger_is_better: bool

    def worth(self, figures: Mapping[str, float]) -> float:
        """The figure, so turned that larger is better."""
        return figures[self.name] if self.larger_is_better else -figures[self.name]


def objectives_of(search: Search) -> list[Objective]:
    """What a search is led by; the first one leads."""
    return [Objective(search.metric(name), SHAPES.get(name, True)) for name in search.objectives]


def pareto_front(trials: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> list[int]:
    """Places of the trials than which no other is as good in everything and better in something, in order.

    ``trials``: the figures of each.
    """
    worth = np.array([[objective.worth(trial) for objective in objectives] for trial in trials])
    return [
        place for place, own in enumerate(worth) if not ((worth >= own).all(axis=1) & (worth > own).any(axis=1)).any()
    ]


def knee(trials: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> int:
    """The trial of the front that is nearest to the best of everything, each objective scaled to its range there."""
    front = pareto_front(trials, objectives)
    worth = np.array([[objective.worth(trials[place]) for objective in objectives] for place in front])
    spread = np.ptp(worth, axis=0)
    short = (worth.max(axis=0) - worth) / np.where(spread > 0, spread, 1.0)
    return front[int(np.linalg.norm(short, axis=1).argmin())]


def pick(how: str, trials: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> int:
    """The place of the trial to take.

    Args:
        how: ``knee``; ``score`` or the name of an objective, for its best; or ``NAME<=X`` or ``NAME>=X``, for the first
            objective's best among the trials within.
        trials: the figures of each, one at least.
        objectives: what the search was led by.

    Raises:
        UserError: another word, or no trial is within.
    """
    named = {"score": objectives[0], **{objective.name: objective for objective in objectives}}
    if how == "knee":
        return knee(trials, objectives)
    if how in named:
        return max(range(len(trials)), key=lambda place: named[how].worth(trials[place]))
    match = re.fullmatch(r"(\w+)(<=|>=)([\d.eE+-]+)", how)
    if not match or match[1] not in trials[0] or not _is_number(match[3]):
        known = ", ".join(["knee", *named, *(f"{name}<=X" for name in trials[0])])
        raise UserError(f"--pick is '{how}'; write one of {known}")
    name, sign, bound = match[1], match[2], float(match[3])
    within = [place for place, trial in enumerate(trials) if (trial[name] - bound) * (1 if sign == "<=" else -1) <= 0]
    if not within:
        nearest = (min if sign == "<=" else max)(trial[name] for trial in trials)
        raise UserError(f"--pick is '{how}', but the nearest trial has {name}={nearest:g}; choose another bound")
    return max(within, key=lambda place: objectives[0].worth(trials[place]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
