"""A search file: the experiment that all trials start from, what varies, what is allowed, and what counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from refbert_dist.config import Experiment, parse_model, read_yaml
from refbert_dist.config.load import apply_overrides, check_value, overrides_of, read_about_experiment
from refbert_dist.config.section import NonNegative, Positive, Rate, Section
from refbert_dist.data.tasks import task_spec
from refbert_dist.errors import UserError, did_you_mean
from refbert_dist.rundir import SEARCH, explain_other_version

RATIO = "student.intermediate_ratio"
"""A dimension that is no field of an experiment: ``student.intermediate`` as a multiple of ``student.hidden``."""
SHAPES = {"parameters": False, "gflops": False, "latency_ms": False}
"""Figures of a shape, known before it is trained, and whether larger is better."""
HELD_OUT = 0.2
"""Of a search whose file does not say: share of the training rows on which trials are scored."""


class Range(Section):
    """Numbers from one to another."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    step: Rate | None = None
    """Distance of neighbouring values; ``null``: any number between, of a field of whole numbers any whole one."""
    log: bool = False
    """Draw evenly over orders of magnitude; not with ``step``."""

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, not below high={self.high:g}; exchange or widen them")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError(f"log goes with low above 0 (here {self.low:g}) and without step; take one of them away")
        return self


Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Dimension = Values | Range


class Limits(Section):
    """What a student may cost. A shape above a limit is never trained."""

    parameters: Positive | None = None
    """Weights of the student, classifier included."""
    gflops: Rate | None = None
    """Matrix products of a forward pass on one text of ``task.max_length`` tokens, in 10^9 operations; references are
    projected beforehand, as in an exported model."""
    latency_ms: Rate | None = None
    """Median of a forward pass of ``evaluate.latency_batch_size`` held-out texts, timed on the machine of the search
    before anything is trained."""


class Look(Section):
    """How points of the space are chosen."""

    algorithm: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """Optuna's TPE (for one objective or several) or NSGA-II; random points; or every point, in order."""
    trials: Positive = 20
    """Trials at most; a continued search may ask for more."""
    seed: NonNegative = 0
    """Of the choice; what a trial computes depends on the experiment's own seed."""


class Halving(Section):
    """Asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934): most trials end early."""

    rungs: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    """Shares of the general stage's steps after which a trial is scored, through a whole task stage, and all but the
    best end by ``score``; ascending. None: every trial goes to its end."""
    reduction: Annotated[float, Field(gt=1.0)] = 3.0
    """One trial in so many goes on."""

    @model_validator(mode="after")
    def _ascending(self) -> Halving:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"halving.rungs is {list(self.rungs)}; write each share once, smallest first")
        return self


class TrialConfig(Section):
    """What a trial gets of the machine."""

    processes: Positive = 1
    """Processes, instead of ``launch.processes``, which is for what all trials share."""
    cpus: Positive | None = None
    """Processor cores; ``null``: one for each process."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs; with a part of one, several trials share it."""
    concurrent: Positive | None = None
    """Trials at the same time; ``null``: as many as fit."""
    failures: NonNegative = 1
    """Times that a trial is started again, from its last checkpoint, after it has crashed."""

    @property
    def cores(self) -> int:
        """Processor cores."""
        return self.cpus or self.processes

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, self.cores // self.processes)


class Search(Section):
    """Everything a search needs; see ``configs/search-demo.yaml``."""

    experiment: Experiment
    """What all trials share: an experiment, or ``file`` (beside the search file) with what is to be changed in it."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """Field of the experiment -> list of values, or ``{low, high, step, log}``. ``student.intermediate_ratio`` stands
    for ``student.intermediate`` as a multiple of ``student.hidden``."""
    limits: Limits = Limits()
    """What a student may cost."""
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("score",)
    """``score`` (the task's leading metric on the held-out rows), another metric of the task, ``parameters``,
    ``gflops``, ``latency_ms``. With several, the answer is their Pareto front."""
    look: Look = Look()
    """How points are chosen."""
    halving: Halving = Halving()
    """Which trials end early."""
    trial: TrialConfig = TrialConfig()
    """What a trial gets of the machine."""

    @model_validator(mode="before")
    @classmethod
    def _whole_steps(cls, data: Any) -> Any:
        """Between whole numbers of a field that takes no others lie only whole ones."""
        space = data.get("space") if isinstance(data, dict) else None
        if not isinstance(space, dict):
            return data
        for name, values in space.items():
            if isinstance(values, dict) and values.get("log") and _is_whole(name):
                raise ValueError(
                    f"space.{name} asks for log, but the field takes whole numbers only; write a list of them, such as "
                    "[64, 128, 256]"
                )
        stepped = {
            name: {"step": 1, **values} if isinstance(values, dict) and _is_whole(name) else values
            for name, values in space.items()
        }
        return {**data, "space": stepped}

    @model_validator(mode="after")
    def _scored_on_held_out_rows(self) -> Search:
        task = self.experiment.task
        if task is None:
            raise ValueError("experiment.task is missing, but trials are scored on a task; add the section")
        if not task.held_out:
            raise ValueError(
                "experiment.task.held_out is 0, so that trials would be chosen by their score on dev; set it to the "
                f"share of training rows to score on, such as {HELD_OUT}"
            )
        metrics = task_spec(task.name).metrics
        known = ("score", *metrics, *SHAPES)
        for name in self.objectives:
            if name not in known:
                raise ValueError(
                    f"objectives names '{name}', which no trial reports; those of {task.name} are "
                    f"{', '.join(known)}{did_you_mean(name, known)}"
                )
        if len({self.metric(name) for name in self.objectives}) < len(self.objectives):
            raise ValueError(f"objectives is {list(self.objectives)}; name each figure once")
        if self.halving.rungs and self.experiment.corpus is None:
            raise ValueError(
                "halving.rungs are shares of the general stage, which an experiment without corpus lacks; add corpus, "
                "or take halving away"
            )
        return self

    def metric(self, objective: str) -> str:
        """The figure that an objective means: ``score`` is the task's leading metric."""
        assert self.experiment.task is not None
        return task_spec(self.experiment.task.name).metrics[0] if objective == "score" else objective

    @property
    def times_shapes(self) -> bool:
        """Whether forward passes are timed."""
        return self.limits.latency_ms is not None or "latency_ms" in self.objectives

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the general stage after which a trial is scored; the last is all of it."""
        return (*self.halving.rungs, 1.0)


def _is_whole(name: str) -> bool:
    try:
        check_value(name, 1)
    except UserError:
        return False
    try:
        check_value(name, 1.5)
    except UserError:
        return True
    return False


def stored_search(run_dir: Path) -> Search:
    """The search of a run directory."""
    _require_libraries()
    with explain_other_version(run_dir / SEARCH):
        return parse_model(Search, read_yaml(run_dir / SEARCH))


def _require_libraries() -> None:
    """Raise :class:`UserError` where what a search runs on is not installed; nothing is loaded."""
    for name in ("ray", "optuna"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"a search needs {name}, which is not installed; run pip install 'refbert-dist[tune]'")


def load_search(path: str | Path, overrides: Iterable[str] = ()) -> Search:
    """Read a search file. Overrides are of the search where they name one of its sections, else of the experiment.

    Raises :class:`UserError` as :func:`refbert_dist.config.load_experiment`.
    """
    _require_libraries()
    data = read_about_experiment(path)
    own, inner = overrides_of(Search, overrides)
    given = apply_overrides(data["experiment"], inner)
    if isinstance(given.get("task"), dict):
        given["task"] = {"held_out": HELD_OUT, **given["task"]}
    # A point without references is TinyBERT; another student beside each would only double the cost.
    given["systems"] = ["refbert"]
    return parse_model(Search, apply_overrides({**data, "experiment": given}, own))
