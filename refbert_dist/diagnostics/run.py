"""``refbert diagnose``: what a finished run's students make of their references, from its models and caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from refbert_dist.artifacts import map_tensors, write_json
from refbert_dist.cache.models import is_saved
from refbert_dist.config import SYSTEM_LABELS, Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.diagnostics.gains import (
    attention_table,
    by_label,
    by_similarity,
    kinds,
    measure_of,
    row_scores,
)
from refbert_dist.diagnostics.information import SYSTEMS, information
from refbert_dist.diagnostics.states import pooled_states
from refbert_dist.diagnostics.votes import mixed_with_votes
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.guards import word_set
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.statistics import jaccard
from refbert_dist.stages.scores import answers_path
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, model_folder

FILE_NAME = "diagnostics.json"
VOTES = "knn"
"""Whose answers are the votes of references."""
TRAIN_ROWS, HELD_OUT_ROWS = 4096, 2048
"""Rows at most that critics learn from, and that everything is measured on."""


def check(exp: Experiment) -> None:
    """Raise where there is nothing to diagnose, or not yet."""
    if exp.task is None:
        raise UserError(
            f"task is null in {exp.run.dir}, but diagnose looks at a task's students; give a run with a task"
        )
    if not exp.reference_count("refbert"):
        raise UserError(
            f"references.count is 0 in {exp.run.dir}, so that there is nothing to diagnose; give a run with references"
        )
    for system in exp.trained_systems():
        if not is_saved(model_folder(exp, f"prediction-{system}")):
            raise RefusedError(f"{exp.run.dir} has no student {system} yet; run refbert distill task first")
        path = answers_path(exp.run.dir, system)
        if not path.exists():
            raise RefusedError(
                f"{path} is missing; run refbert evaluate, of a run of an older version after removing its results.json"
            )


def diagnose(exp: Experiment) -> dict[str, Any]:
    """Write ``RUN_DIR/diagnostics.json`` and return what it holds."""
    check(exp)
    assert exp.task is not None
    spec = task_spec(exp.task.name)
    device = device_of(World.from_environment())
    setting = Setting(exp, "task", device)
    train, dev = setting.tokens, TokenSet.open(tokens_artifact(exp, "dev"))
    assert train.labels is not None and dev.labels is not None
    folders = {system: model_folder(exp, f"prediction-{system}") for system in exp.trained_systems()}
    students = {system: load_classifier(folder).to(device).eval() for system, folder in folders.items()}
    learnt, seen = (_some(len(train), TRAIN_ROWS), _some(len(dev), HELD_OUT_ROWS))
    size = exp.evaluate.batch_size
    taught = pooled_states(setting, students, "train", train, learnt, size)
    held_out = pooled_states(setting, students, "dev", dev, seen, size)

    labels = dev.labels[seen]
    table = NeighbourTable.open(neighbours_artifact(exp, "dev"))
    nearest = table.prefix(1)[seen, 0]
    kind = kinds(nearest, labels, train.labels, spec)
    paths = {name: answers_path(exp.run.dir, name) for name in SYSTEM_LABELS}
    answers = {name: map_tensors(path)["logits"][seen] for name, path in paths.items() if path.exists()}
    scores = {name: row_scores(logits, labels, spec) for name, logits in answers.items()}
    mixed = [name for name in SYSTEMS if name in answers] if VOTES in answers else []
    found = {
        "task": spec.name,
        "rows": len(seen),
        "train_rows": len(learnt),
        "measure": measure_of(spec),
        "information": [row for name in SYSTEMS if name in students for row in information(taught, held_out, name)],
        "attention": [
            {"system": system, **row}
            for system, mass in held_out.mass.items()
            for row in attention_table(mass, held_out.even[system], kind)
        ],
        "by_label": by_label(scores, kind),
        "by_similarity": by_similarity(scores, _similarities(dev, seen, train, nearest), kind),
        "mixed": [{"system": name, **mixed_with_votes(answers[name], answers[VOTES], labels, spec)} for name in mixed],
    }
    write_json(exp.run.dir / FILE_NAME, found)
    return found


def _some(total: int, most: int) -> np.ndarray:
    """At most so many rows, drawn and in their order."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, size=most, replace=False))


def _similarities(dev: TokenSet, rows: np.ndarray, pool: TokenSet, nearest: np.ndarray) -> np.ndarray:
    """Share of the words that each row has in common with its nearest reference, ``[N]``; 0 where it has none."""
    texts, others = dev.texts(), pool.texts()
    return np.array(
        [
            jaccard(word_set(texts[row]), word_set(others[other])) if other >= 0 else 0.0
            for row, other in zip(rows.tolist(), nearest.tolist(), strict=True)
        ]
    )
