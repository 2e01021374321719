"""What must hold before anything is distilled on a task: the teacher knows it, and its labels are the task's."""

from __future__ import annotations

import json
import re
from itertools import permutations
from typing import Any

import numpy as np
import torch

from refbert_dist.config import Experiment
from refbert_dist.data.tasks import TaskSpec, task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import RefusedError
from refbert_dist.models.locate import model_folder
from refbert_dist.models.teacher import Teacher
from refbert_dist.stages.answers import teacher_answers
from refbert_dist.stages.scores import scores

NAMELESS = re.compile(r"label_\d+")
"""What transformers calls a class that nobody has named."""


def check_labels(exp: Experiment) -> None:
    """Refuse a ``teacher.model`` that is a classifier with other labels, or with the task's labels in another order.

    Fine-tuning would begin with its head, or drop it without a word. Off where ``task.min_teacher_gain`` is null.
    """
    assert exp.task is not None
    if exp.task.min_teacher_gain is None:
        return
    config = json.loads((model_folder(exp.teacher.model) / "config.json").read_text(encoding="utf-8"))
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return
    spec = task_spec(exp.task.name)
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = [str(named[number]).lower().replace(" ", "_").replace("-", "_") for number in sorted(named, key=int)]
    expected = spec.label_names
    if len(labels) != spec.num_labels:
        reason = f"but {spec.name} has {spec.num_labels}"
    elif not expected or labels == list(expected) or all(NAMELESS.fullmatch(label) for label in labels):
        return
    else:
        order = " in this order" if sorted(labels) == sorted(expected) else ""
        reason = f"but those of {spec.name} are {', '.join(expected)}{order}"
    raise RefusedError(
        f"teacher.model is '{exp.teacher.model}', already a classifier with {len(labels)} label(s) "
        f"({', '.join(labels)}), {reason}; give the encoder that it was made from, or set task.min_teacher_gain=null "
        "to fine-tune it all the same"
    )


def check_teacher(exp: Experiment, teacher: Teacher, device: torch.device) -> dict[str, Any] | None:
    """Refuse a fine-tuned teacher that hardly beats a constant answer on dev. A collective.

    Returns its score on the task's leading metric beside that of the best constant answer; None where
    ``task.min_teacher_gain`` is null.
    """
    assert exp.task is not None
    required = exp.task.min_teacher_gain
    spec = task_spec(exp.task.name)
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    assert dev.labels is not None
    logits = teacher_answers(exp, teacher, dev, device)
    if required is None:
        return None
    metric = spec.metrics[0]
    score, baseline = _score(spec, logits, dev.labels), constant_score(spec, dev.labels)
    if score - baseline < required:
        raise RefusedError(
            f"the {metric} of the fine-tuned teacher is {score:.3f} on dev of {spec.name}, but one and the same answer "
            f"to everything has {baseline:.3f}, and task.min_teacher_gain asks for {required:g} more: there is nothing "
            f"to distil{_permuted(spec, logits, dev.labels, baseline + required)}; mend data or finetune settings, or "
            "set task.min_teacher_gain=null"
        )
    return {"metric": metric, "teacher": round(score, 6), "constant": round(baseline, 6), "required": required}


def constant_score(spec: TaskSpec, labels: np.ndarray) -> float:
    """The leading metric of the best answer that is the same for all rows."""
    answers = np.eye(spec.num_labels, dtype=np.float32)
    return max(_score(spec, np.tile(answer, (len(labels), 1)), labels) for answer in answers)


def _score(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> float:
    return scores(spec.metrics[:1], logits, labels)[spec.metrics[0]]


def _permuted(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray, wanted: float) -> str:
    """What to say of a teacher that knows the task, but by another order of the classes."""
    orders = permutations(range(spec.num_labels))
    best = max(orders, key=lambda order: _score(spec, logits[:, order], labels))
    score = _score(spec, logits[:, best], labels)
    if score < wanted:
        return ""
    names = ", ".join(map(str, best))
    return (
        f" (with its classes taken in the order {names} it has {score:.3f}: are the labels of train and dev the same?)"
    )
