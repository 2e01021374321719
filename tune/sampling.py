"""Which point to try next: Optuna's samplers over what has been tried, or a grid. The only module that imports it."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tune.config import Dimension, Range, Search
from tune.front import Objective
from tune.records import Trial
from tune.space import Point, as_number, grid, grid_size

optuna.logging.set_verbosity(logging.ERROR)

ASKS = 500
"""Points that are drawn, one after the other, until one is new and allowed."""
SMALL = 100_000
"""Points of a space that is gone through when drawing finds nothing new any more."""

Refusal = Callable[[Point], str | None]
"""Why a point must not be tried; None if it may."""


class Sampler:
    """Chooses points, none twice. All it knows comes from the records of trials: it needs no state of its own.

    Args:
        search: space and algorithm.
        objectives: what the choice is led by.
        trials: those that there are already.
        refusal: tells which points are not allowed.
    """

    def __init__(
        self, search: Search, objectives: Sequence[Objective], trials: Iterable[Trial], refusal: Refusal
    ) -> None:
        self._search = search
        self._objectives = objectives
        self._refusal = refusal
        self._refused: dict[str, str] = {}
        self._tried: set[str] = set()
        self._open: dict[int, optuna.Trial] = {}
        self._axes = {name: Axis(dimension) for name, dimension in search.space.items()}
        known = list(trials)
        self._study = optuna.create_study(
            sampler=self._algorithm(search.look.seed + len(known)),
            directions=["maximize" if objective.larger_is_better else "minimize" for objective in objectives],
        )
        for trial in known:
            self._enter(trial)

    def _algorithm(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._search.look.algorithm == "tpe":
            # Points that are being tried count as bad ones, so that trials side by side do not crowd.
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if self._search.look.algorithm == "nsga2":
            population = max(4, round(self._search.look.trials**0.5) * 2)
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        return optuna.samplers.RandomSampler(seed=seed)

    def _enter(self, trial: Trial) -> None:
        """Let the study know a trial of an earlier start."""
        self._tried.add(_key(trial.point))
        self._study.enqueue_trial({name: axis.place(trial.point[name]) for name, axis in self._axes.items()})
        self._open[trial.number] = self._ask()[0]
        if trial.figures:
            self.tell(trial)

    def _ask(self) -> tuple[optuna.Trial, Point]:
        asked = self._study.ask({name: axis.distribution for name, axis in self._axes.items()})
        return asked, {name: axis.value(asked.params[name]) for name, axis in self._axes.items()}

    def next(self, number: int) -> Point | None:
        """The point of trial ``number``; None when every point that is allowed has been tried."""
        if self._search.look.algorithm != "grid":
            for _ in range(ASKS):
                asked, point = self._ask()
                if self._allowed(point):
                    self._tried.add(_key(point))
                    self._open[number] = asked
                    return point
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return self._left_over()

    def _left_over(self) -> Point | None:
        size = grid_size(self._search)
        if size is None or size > SMALL:
            return None
        points = list(grid(self._search))
        if self._search.look.algorithm != "grid":
            random.Random(len(self._tried)).shuffle(points)
        found = next((point for point in points if self._allowed(point)), None)
        if found:
            self._tried.add(_key(found))
        return found

    def _allowed(self, point: Point) -> bool:
        key = _key(point)
        if key in self._tried or key in self._refused:
            return False
        reason = self._refusal(point)
        if reason:
            self._refused[key] = reason
        return reason is None

    def tell(self, trial: Trial) -> None:
        """What a trial has come to; one that ended early counts with what it had."""
        asked = self._open.pop(trial.number, None)
        if asked is None:
            return
        if trial.figures:
            self._study.tell(asked, [trial.figures[objective.name] for objective in self._objectives])
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)

    @property
    def refused(self) -> Mapping[str, str]:
        """Points that were drawn and not allowed, as JSON, and why."""
        return self._refused


class Axis:
    """One dimension, as Optuna sees it: numbers of a list keep their order, as places in it."""

    def __init__(self, dimension: Dimension) -> None:
        self._dimension = dimension

    @property
    def distribution(self) -> BaseDistribution:
        """What values are drawn from."""
        dimension = self._dimension
        if isinstance(dimension, Range):
            ends = (dimension.low, dimension.high)
            if all(float(number).is_integer() for number in (*ends, dimension.step or 0.5)):
                return IntDistribution(int(ends[0]), int(ends[1]), step=int(dimension.step or 1))
            return FloatDistribution(*ends, step=dimension.step, log=dimension.log)
        if all(_is_number(value) for value in dimension):
            return IntDistribution(0, len(dimension) - 1)
        return CategoricalDistribution([json.dumps(value) for value in dimension])

    def value(self, drawn: Any) -> Any:
        """The field's value for what was drawn."""
        if isinstance(self._dimension, Range):
            return as_number(drawn) if isinstance(self.distribution, IntDistribution) else drawn
        return json.loads(drawn) if isinstance(drawn, str) else self._dimension[drawn]

    def place(self, value: Any) -> Any:
        """The inverse of :meth:`value`."""
        if isinstance(self._dimension, Range):
            return value
        if isinstance(self.distribution, CategoricalDistribution):
            return json.dumps(value)
        return self._dimension.index(value)


def importances(search: Search, objective: Objective, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of an objective's variance that each dimension explains (fANOVA, Hutter et al. 2014), largest first.

    Only trials that went to their end count. Empty where they are too few, or all alike.
    """
    ended = [trial for trial in trials if trial.state == "finished" and objective.name in trial.figures]
    values = [trial.figures[objective.name] for trial in ended]
    if len(ended) < 4 or len(set(values)) < 2:
        return {}
    axes = {name: Axis(dimension) for name, dimension in search.space.items()}
    study = optuna.create_study()
    for trial, value in zip(ended, values, strict=True):
        params = {name: axis.place(trial.point[name]) for name, axis in axes.items()}
        distributions = {name: axis.distribution for name, axis in axes.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)
