"""A table file: the experiment that all cells share, the tasks and seeds that it is repeated for, where the rows go."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, field_validator, model_validator

from refbert_dist.config import Experiment, SystemName, parse_experiment, parse_model, read_yaml
from refbert_dist.config.load import apply_overrides, merged, overrides_of, read_about_experiment
from refbert_dist.config.section import Rate, Section
from refbert_dist.config.systems import EXPORTED, SYSTEMS
from refbert_dist.data.tasks import task_spec
from refbert_dist.errors import UserError, did_you_mean
from refbert_dist.rundir import TABLE, explain_other_version

DEFAULT = "default"
"""In ``seeds``: of all systems that are not named there."""
METHOD: SystemName = "refbert"
"""The system that variants are of."""
VARIED = "references"
"""The section of an experiment that a variant may change."""


@dataclass(frozen=True)
class Cell:
    """One run of a table: a task, and the students that have this seed, or a variant of one of them."""

    task: str
    """Its name in the table."""
    seed: int
    """Of the students (``distill.seed``); everything else is drawn with the experiment's own."""
    variant: str | None
    """Its name in the table, where the only system is a variant of RefBERT."""
    experiment: Experiment

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.task, f"seed{self.seed}", *([self.variant] if self.variant else [])])

    def row_name(self, system: str) -> str | None:
        """What the table's rows call a system of this cell; None for what other cells have as well."""
        if self.variant is None:
            return system
        return varied(self.variant) if system == METHOD else None

    def seed_of(self, system: str) -> int:
        """Of a student the cell's own; of anything else, which all cells share, the experiment's."""
        return self.seed if system in get_args(SystemName) else self.experiment.seed


class Choose(Section):
    """What is settled on held-out rows of train before anything is scored on dev."""

    rates: Annotated[tuple[Rate, ...], Field(min_length=2)]
    """Factors on the learning rates of both phases of the task stage: each student takes the one with which it scores
    best on held-out rows, of equals the first."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training rows that are held out (``task.held_out``)."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the students that are compared: a number of them, counted from 0, or a list."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _as_list(cls, seeds: Any) -> tuple[int, ...]:
        return _seeds("choose.seeds", seeds)

    @model_validator(mode="after")
    def _rates_differ(self) -> Choose:
        if len(set(self.rates)) < len(self.rates):
            raise ValueError(f"choose.rates is {list(self.rates)}, which has one twice; name each once")
        return self


class Table(Section):
    """Everything a table needs; see ``configs/glue-small.yaml``."""

    title: Annotated[str, Field(min_length=1)]
    """Name by which the CSV file tells its rows from those of other tables; by default that of the table file."""
    experiment: dict[str, Any]
    """What all cells share: an experiment, or ``file`` (beside the table file) with what is to be changed in it. Its
    ``systems`` are the students that are compared."""
    data: str | None = None
    """Folder that holds one for each task, by its GLUE name, as ``MRPC``; for tasks that have no ``task.path``."""
    tasks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name -> what differs from the experiment, as ``{task.max_train: 12000}`` or in sections. ``task.name`` is the
    name unless given."""
    variants: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Name -> what differs from the experiment in a further RefBERT, as ``{references.count: 4}``: fields of
    ``references`` only, so that everything else stays comparable."""
    choose: Choose | None = None
    """Choose the rate of each student on held-out rows first; ``null``: all have the experiment's."""
    rate_factors: dict[str, dict[str, Rate]] = {}  # noqa: RUF012
    """Task -> system or variant -> factor on its rates (``distill.rate_factors``), others 1; with ``choose`` these are
    what was chosen."""
    seeds: dict[str, tuple[int, ...]] = {DEFAULT: (0,)}  # noqa: RUF012
    """Seeds of the students (``distill.seed``): a number of them, counted from 0, a list, or either for each system
    or variant with ``default`` for the others. Teachers, caches and students of the general stage have none of their
    own."""
    csv: Path | None = None
    """File to which the rows of finished cells are added, in the repository perhaps; ``null``: ``table.csv`` in the
    run directory."""

    @field_validator("tasks", "variants", mode="before")
    @classmethod
    def _in_sections(cls, changed: Any) -> Any:
        """A name such as ``task.path`` stands for ``path`` in the section ``task``; ``null`` for no changes."""
        if not isinstance(changed, dict):
            return changed
        return {name: {} if given is None else _sections(given) for name, given in changed.items()}

    @field_validator("seeds", mode="before")
    @classmethod
    def _as_lists(cls, seeds: Any) -> Any:
        if isinstance(seeds, dict):
            return {name: _seeds(f"seeds.{name}", given) for name, given in seeds.items()}
        return {DEFAULT: _seeds("seeds", seeds)}

    @model_validator(mode="after")
    def _cells_are_whole_and_different(self) -> Table:
        for task, changes in self.tasks.items():
            _check_task(task, changes)
        for variant, changes in self.variants.items():
            _check_variant(variant, changes)
        systems, named = self.experiments[next(iter(self.tasks))].systems, self.names
        _require_known("seeds", (name for name in self.seeds if name != DEFAULT), named)
        _require_known("rate_factors", self.rate_factors, self.tasks, "tasks")
        for task, factors in self.rate_factors.items():
            _require_known(f"rate_factors.{task}", factors, named)
        if self.choose and (held := next((task for task, exp in self.experiments.items() if _holds_out(exp)), None)):
            raise ValueError(
                f"choose is given but tasks.{held} has a task.held_out, which choose sets itself; take one of them away"
            )
        compared = {seed for system in systems if system in EXPORTED for seed in self.seeds_of(system)}
        for name in named:
            if not self.seeds_of(name):
                raise ValueError(f"seeds has none for {name}; add seeds.{name} or seeds.{DEFAULT}")
            if alone := sorted({*self.seeds_of(name)} - compared):
                raise ValueError(
                    f"seeds has {alone[0]} for {name}, which none of {', '.join(EXPORTED)} has, so that it could be "
                    "compared with nothing; add it there, or take it away"
                )
        _check_different("tasks", self.experiments)
        first = next(iter(self.tasks))
        of_first = {variant: self.experiment_of(first, variant) for variant in self.variants}
        for variant, exp in of_first.items():
            if not exp.reads(METHOD):
                raise ValueError(
                    f"variants.{variant} has no references and would be TinyBERT; set references.count or "
                    "references.memory, or take it away"
                )
        _check_different("variants", of_first, self.experiments[first])
        return self

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """Of each task, with all systems, in the run directory of the table."""
        return {task: self.experiment_of(task) for task in self.tasks}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, in order: the first seed of every task makes what the others share."""
        systems = next(iter(self.experiments.values())).systems
        seeds = dict.fromkeys(seed for system in systems for seed in self.seeds_of(system))
        return tuple(
            self._cell(task, seed, variant)
            for seed in sorted(seeds)
            for task in self.tasks
            for variant in (None, *self.variants)
            if variant is None or seed in self.seeds_of(variant)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all students: systems, then variants."""
        return (*next(iter(self.experiments.values())).systems, *self.variants)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Tasks for which the rate of some student is still to be chosen."""
        if not self.choose:
            return ()
        return tuple(task for task in self.tasks if {*self.names} - {*self.rate_factors.get(task, {})})

    @property
    def run_dir(self) -> Path:
        """Of the table; its cells lie below."""
        return next(iter(self.experiments.values())).run.dir

    @property
    def csv_path(self) -> Path:
        """Of the CSV file."""
        return self.csv or self.run_dir / "table.csv"

    def seeds_of(self, system: str) -> tuple[int, ...]:
        """Seeds with which a system, or a variant by its name, is trained."""
        return self.seeds.get(system, self.seeds.get(DEFAULT, ()))

    def experiment_of(self, task: str, variant: str | None = None) -> Experiment:
        """Of a task, with all systems, or with RefBERT alone, as a variant changes it."""
        changes = self.tasks[task]
        given = merged(self.experiment, changes)
        if variant is not None:
            given = {**merged(given, self.variants[variant]), "systems": [METHOD]}
        if factors := self._factors_of(task, variant):
            given = merged(given, {"distill": {"rate_factors": factors}})
        own = changes.get("task", {})
        name = own.get("name", task)
        path = own.get("path", None if self.data is None else f"{self.data}/{name}")
        if path is None:
            raise ValueError(f"tasks.{task} has no task.path; give it one, or data, the folder that holds all tasks")
        given["task"] = {**(given.get("task") or {}), "name": name, "path": path}
        try:
            task_spec(str(name))
            return parse_experiment(given)
        except UserError as error:
            raise ValueError(f"{f'variants.{variant}' if variant else f'tasks.{task}'}: {error}") from None

    def _factors_of(self, task: str, variant: str | None) -> dict[str, float]:
        """By the names that systems have in an experiment, where a variant is RefBERT."""
        found = self.rate_factors.get(task, {})
        if variant is not None:
            return {METHOD: found[variant]} if variant in found else {}
        return {name: factor for name, factor in found.items() if name in SYSTEMS}

    def _cell(self, task: str, seed: int, variant: str | None) -> Cell:
        exp = self.experiment_of(task, variant)
        systems = [system for system in exp.systems if variant or seed in self.seeds_of(system)]
        # An experiment begins with one that can be exported.
        systems.sort(key=lambda system: system not in EXPORTED)
        cell = Cell(task, seed, variant, exp)
        folder = exp.run.dir / "cells" / cell.name
        changes = [f"systems={json.dumps(systems)}", f"distill.seed={seed}", f"run.dir={json.dumps(str(folder))}"]
        return replace(cell, experiment=parse_experiment(apply_overrides(exp.model_dump(mode="json"), changes)))


def varied(variant: str) -> str:
    """What rows call RefBERT in a variant."""
    return f"{METHOD}:{variant}"


def variant_of(system: str) -> str | None:
    """The variant that a row's system is; None of any other system."""
    return system.removeprefix(varied("")) if system.startswith(varied("")) else None


def _sections(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    found: dict[str, Any] = {}
    for name, value in given.items():
        *parents, leaf = str(name).split(".")
        nested: dict[str, Any] = {leaf: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        found = merged(found, nested)
    return found


def _seeds(name: str, given: Any) -> tuple[int, ...]:
    """A number of seeds, or a list of them, as a list."""
    listed = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    whole = isinstance(listed, list | tuple) and all(type(seed) is int and seed >= 0 for seed in listed)
    if not whole or not listed or len(set(listed)) < len(listed):
        raise ValueError(f"{name} is {given!r}; give a number of seeds, 1 at least, or a list of different ones")
    return tuple(listed)


def _check_task(task: str, changes: Mapping[str, Any]) -> None:
    _check_name("tasks", task)
    if not isinstance(changes.get("task", {}), dict):
        raise ValueError(f"tasks.{task}.task is {changes['task']!r}, not a section; write its fields as task.field")
    for field in ("run", "seed", "systems"):
        if field in changes:
            raise ValueError(f"tasks.{task} sets {field}, which all cells share; set it in experiment")
    if isinstance(changes.get("distill"), dict) and "seed" in changes["distill"]:
        raise ValueError(f"tasks.{task} sets distill.seed, which differs from cell to cell; set seeds")


def _check_variant(variant: str, changes: Mapping[str, Any]) -> None:
    _check_name("variants", variant)
    if variant in (*SYSTEMS, DEFAULT):
        raise ValueError(f"variants names '{variant}', which seeds would take for something else; choose another name")
    for field in changes:
        if field != VARIED:
            raise ValueError(
                f"variants.{variant} sets {field}, which all systems of a table share; a variant may set fields of "
                f"{VARIED} only"
            )


def _require_known(field: str, given: Iterable[str], known: Iterable[str], what: str = "systems") -> None:
    """Raise ValueError for a name that the table does not have."""
    names = tuple(known)
    for name in given:
        if name not in names:
            raise ValueError(
                f"{field} names '{name}', which is not among the table's {what} ({', '.join(names)})"
                f"{did_you_mean(name, names)}; add it to {what}, or take it away"
            )


def _holds_out(exp: Experiment) -> bool:
    return exp.task is not None and exp.task.held_out > 0.0


def _check_name(field: str, name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"{field} names '{name}', which cannot name a folder; use letters, digits, '-' and '_'")


def _check_different(field: str, found: Mapping[str, Experiment], base: Experiment | None = None) -> None:
    """Raise ValueError for two of the same settings, or one that has those of ``base``."""
    same = {} if base is None else {_but_for_systems(base): "the experiment itself"}
    for name, exp in found.items():
        other = same.setdefault(_but_for_systems(exp), f"{field}.{name}")
        if other != f"{field}.{name}":
            raise ValueError(f"{field}.{name} is the same as {other}; change something in it, or take it away")


def _but_for_systems(exp: Experiment) -> str:
    return exp.model_dump_json(exclude={"systems"})


def is_table_file(path: Path) -> bool:
    """Whether a YAML file is that of a table: an experiment has one task, a table has tasks."""
    return "tasks" in read_yaml(path)


def load_table(path: str | Path, overrides: Iterable[str] = ()) -> Table:
    """Read a table file. Overrides are of the table where they name one of its fields, else of the experiment.

    Raises :class:`UserError` as :func:`refbert_dist.config.load_experiment`.
    """
    data = read_about_experiment(path)
    own, inner = overrides_of(Table, overrides)
    given = {"title": Path(path).stem, **data, "experiment": apply_overrides(data["experiment"], inner)}
    return parse_model(Table, apply_overrides(given, own))


def stored_table(run_dir: Path) -> Table:
    """The table of a run directory, wherever that lies now."""
    with explain_other_version(run_dir / TABLE):
        data = apply_overrides(read_yaml(run_dir / TABLE), [f"experiment.run.dir={json.dumps(str(run_dir.resolve()))}"])
        return parse_model(Table, data)
