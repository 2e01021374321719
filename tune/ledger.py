"""The book of a search: which trial comes next, what each has come to, and whether to go on. Knows no Ray.

All of it follows from the records of the trials on disk, so a search that was killed goes on as soon as they are read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.errors import RefusedError, UserError
from tune.config import Search
from tune.figures import Gate
from tune.front import objectives_of
from tune.records import ENDED, Rung, State, Trial, read_trials, save_trial
from tune.sampling import Sampler
from tune.space import Point, grid_size

HOPELESS = 3
"""Trials that have failed, before any was scored, after which the search is ended."""


class Ledger:
    """Keeps the records of a search's trials.

    Args:
        search: the search.
        run_dir: its run directory.
        gate: tells which points may be tried.
        changed: is called whenever a trial has got further.
    """

    def __init__(self, search: Search, run_dir: Path, gate: Gate, changed: Callable[[Ledger], None]) -> None:
        self.search = search
        self.objectives = objectives_of(search)
        self.trials = {trial.number: trial for trial in read_trials(run_dir)}
        self._run_dir = run_dir
        self._changed = changed
        self._gate = gate
        self._same = {_identity(gate.experiment(trial.point)) for trial in self.trials.values()}
        self._sampler = Sampler(search, self.objectives, self.trials.values(), self._refusal)
        # Halving compares a trial with those before it, so these are told to the scheduler again, in their order.
        self._waiting = [
            number for number, trial in self.trials.items() if trial.state not in ENDED or self._is_compared(trial)
        ]

    def _is_compared(self, trial: Trial) -> bool:
        return bool(self.search.halving.rungs and trial.rungs)

    # -- which comes next ----------------------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Trials that are still to be started, if so many points may be tried."""
        return len(self._waiting) + max(0, total(self.search) - len(self.trials))

    def next(self) -> Trial | None:
        """The trial to start; None when there are enough, or no more points."""
        if self._waiting:
            return self.trials[self._waiting.pop(0)]
        number = len(self.trials) + 1
        if number > self.search.look.trials or (point := self._sampler.next(number)) is None:
            return None
        self._same.add(_identity(self._gate.experiment(point)))
        return self._keep(Trial(number, point))

    def _refusal(self, point: Point) -> str | None:
        reason = self._gate(point)
        if reason is None and _identity(self._gate.experiment(point)) in self._same:
            return "another trial is the same"
        return reason

    # -- what came of it -----------------------------------------------------------------------------------------------

    def began(self, number: int) -> None:
        """A trial has been started, or started again."""
        trial = self.trials[number]
        if trial.state not in ENDED:
            self._keep(replace(trial, state="running", started=trial.started or time.time()))

    def scored(self, number: int, share: float, measured: Mapping[str, float]) -> None:
        """A trial has reached a rung, for the first time or again."""
        trial = self.trials[number]
        if trial.state in ENDED or any(rung.share == share for rung in trial.rungs):
            return
        shape = self._gate.figures(self._gate.experiment(trial.point))
        self._keep(replace(trial, rungs=[*trial.rungs, Rung(share, {**measured, **shape})]))

    def ended(self, number: int, error: str | None = None) -> None:
        """A trial is over: at its end, by the scheduler, or because of an error."""
        trial = self.trials[number]
        if trial.state in ENDED:
            return
        state: State = "finished" if trial.rungs and trial.rungs[-1].share == 1.0 else "stopped"
        trial = self._keep(replace(trial, state="failed" if error else state, error=error, ended=time.time()))
        self._sampler.tell(trial)

    def _keep(self, trial: Trial) -> Trial:
        self.trials[trial.number] = trial
        save_trial(self._run_dir, trial)
        self._changed(self)
        return trial

    # -- how far it is -------------------------------------------------------------------------------------------------

    def of(self, *states: State) -> list[Trial]:
        """The trials in these states, by number."""
        return [trial for trial in self.trials.values() if trial.state in states]

    @property
    def best(self) -> Trial | None:
        """The finished trial that is best by the leading objective."""
        return max(self.of("finished"), key=lambda trial: self.objectives[0].worth(trial.figures), default=None)

    def require_hope(self) -> None:
        """Raise :class:`RefusedError` when trials do nothing but fail."""
        failed = self.of("failed")
        enough = len(failed) >= min(HOPELESS, self.search.look.trials)
        if enough and not any(trial.rungs for trial in self.trials.values()):
            raise RefusedError(
                f"the first {len(failed)} trials failed, and so the search is ended; "
                f"trial {failed[0].name}: {failed[0].error}"
            )


def total(search: Search) -> int:
    """Trials that there will be at most: as many as were asked for, or as the space has points."""
    return min(search.look.trials, grid_size(search) or search.look.trials)


def require_points(search: Search) -> None:
    """Raise :class:`UserError` where the space has no point that may be tried, with a reason."""
    sampler = Sampler(search, objectives_of(search), (), Gate(search))
    if sampler.next(1) is None:
        reasons = list(sampler.refused.values())
        raise UserError(
            f"space and limits leave no student to train: of {len(reasons)} points none may be tried, the last one "
            f"because {reasons[-1]}; widen the space or raise the limits"
        )


def _identity(exp: Experiment) -> str:
    """What a trial computes: equal for points that differ only in what is not read."""
    data: dict[str, Any] = exp.model_dump(mode="json", include={"student", "references", "distill", "engine"})
    if not exp.references.count:
        data["references"] = {name: data["references"][name] for name in ("memory", "stages") if exp.references.memory}
    return json.dumps(data, sort_keys=True)
