"""Tables whose cells are done, with answers that chance and a given skill have made; nothing was trained."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny import tiny_task, tiny_values

from refbert_dist import pipeline
from refbert_dist.artifacts import atomic_path, save_tensors, write_json, write_text
from refbert_dist.config import to_yaml
from refbert_dist.config.schema import RunConfig
from refbert_dist.data.tasks import Split, task_spec
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokens import evaluated_parts, tokens_artifact
from refbert_dist.rundir import EXPERIMENT
from refbert_dist.stages.scores import SUFFIXES, answers_path, scores
from refbert_dist.table import run
from refbert_dist.table.config import Cell, Table, load_table

SKILLS = {"teacher": 0.9, "tinybert": 0.6, "refbert": 0.8, "random": 0.6, "zeros": 0.5}
"""Share of the rows that each system, or variant by its name, knows; it guesses at the others."""


def table_file(root: Path, **changes: Any) -> Path:
    """A table file in ``root`` over the tiny experiment; teacher, task and cache lie beside, shared by all tests."""
    base = root.parent / "tables"
    if not base.exists():
        tiny_task(base / "glue" / "MRPC", dev=200)
    values = tiny_values(base)
    values["run"] = {"dir": str(root / "run")}
    values["task"] = {"max_length": 64, "min_teacher_gain": None}
    table = {"experiment": values, "data": str(base / "glue"), "tasks": {"MRPC": {}}, "seeds": 2}
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump({**table, **changes}, sort_keys=False))
    return path


def fabricate(path: Path, *overrides: str, skills: Mapping[str, float] = SKILLS) -> Table:
    """Every cell of a table as a run leaves it: results and answers; the tokens are real."""
    table = load_table(path, overrides)
    run.begin(table)
    for task, exp in table.experiments.items():
        apart = exp.model_copy(update={"run": RunConfig(dir=path.parent / f"prepared-{task}")})
        pipeline.run(apart, ["prepare"])
    for cell in table.cells:
        finish(cell, skills)
        run.collect(table, cell)
    return table


def finish(cell: Cell, skills: Mapping[str, float] = SKILLS) -> None:
    """Leave results and answers of a cell. A row that is hard for one system is hard for all."""
    exp = cell.experiment
    rows: list[dict[str, Any]] = []
    for part in evaluated_parts(exp):
        rows += _answer(cell, part, skills)
    write_json(exp.run.dir / "results.json", rows)
    write_text(exp.run.dir / EXPERIMENT, to_yaml(exp))


def _answer(cell: Cell, part: Split, skills: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Leave the answers on a part; gives its rows of results."""
    exp = cell.experiment
    assert exp.task
    spec, gold = task_spec(exp.task.name), TokenSet.open(tokens_artifact(exp, part)).labels
    assert gold is not None
    hard = np.random.default_rng(0).random(len(gold))
    for number, system in enumerate(("teacher", *exp.systems)):
        rng = np.random.default_rng([number, cell.seed_of(system)])
        known = hard + rng.normal(0, 0.05, len(gold)) < skills[cell.variant or system]
        logits = _logits(gold, known, rng, spec.num_labels)
        with atomic_path(answers_path(exp.run.dir, system, part)) as temporary:
            save_tensors({"logits": logits})(temporary)
        common = {"system": system, "task": spec.name, "seed": exp.seed, "n": len(gold), "references": 2}
        common |= {"params": 1000, "steps": 10, "samples": 120, "seconds": 1.5}
        for metric, score in scores(spec.metrics, logits, gold).items():
            yield {**common, "metric": metric + SUFFIXES[part], "score": round(score, 6)}


def _logits(gold: np.ndarray, known: np.ndarray, rng: np.random.Generator, classes: int) -> np.ndarray:
    if classes == 1:
        return np.where(known, gold, 5 * rng.random(len(gold)))[:, None].astype(np.float32)
    answers = np.where(known, gold, rng.integers(0, classes, len(gold)))
    logits: np.ndarray = np.eye(classes, dtype=np.float32)[answers.astype(int)]
    return logits
