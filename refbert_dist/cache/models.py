"""Trained models that runs share: the fine-tuned teacher of a task, and the students of the general stage.

``CACHE_DIR/models/KEY/`` is a transformers folder, whole or not there. Its key holds all that shapes the training,
so nine tasks over one corpus distil on that corpus once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbert_dist.artifacts import read_json, recipe_key
from refbert_dist.config import Experiment, OptimConfig, SystemName
from refbert_dist.data.tokens import Part, tokens_artifact

TRAINING_VERSION = 1
"""Raised whenever the same settings would train another model."""
TRAINING = "training.json"
"""Written last into a model's folder: its budget."""


def task_teacher(exp: Experiment) -> Path:
    """Folder of the fine-tuned teacher."""
    return _folder(exp, "task-teacher", _training(exp, "train", exp.finetune))


def general_student(exp: Experiment, system: SystemName) -> Path:
    """Folder of a student that has been through the general stage."""
    recipe = {
        **_training(exp, "corpus", exp.distill.general),
        "student": exp.student.model_dump(mode="json"),
        "references": None,
        "distill": exp.distill.model_dump(
            mode="json", exclude={"general", "intermediate", "prediction", "temperature"}
        ),
    }
    if exp.reference_count(system):
        recipe["references"] = exp.references.model_dump(mode="json", exclude={"stored_count"})
    return _folder(exp, "general-student", recipe)


def _training(exp: Experiment, part: Part, optim: OptimConfig) -> dict[str, Any]:
    return {
        "version": TRAINING_VERSION,
        "teacher": exp.teacher.model,
        "tokens": tokens_artifact(exp, part).path.name,
        "optim": optim.model_dump(mode="json"),
        "micro_batch_size": exp.engine.micro_batch_size,
        "gradient_clipping": exp.engine.gradient_clipping,
        "seed": exp.seed,
    }


def _folder(exp: Experiment, kind: str, recipe: dict[str, Any]) -> Path:
    return exp.cache.dir / "models" / recipe_key(kind, recipe)


def is_saved(folder: Path) -> bool:
    """True once a job has left its model."""
    return (folder / TRAINING).exists()


def training_record(folder: Path) -> dict[str, Any]:
    """Steps, samples and seconds that the model in ``folder`` took, over all its stages."""
    record: dict[str, Any] = read_json(folder / TRAINING)
    return record
