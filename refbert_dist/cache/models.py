"""Trained models that runs share: the fine-tuned teacher of a task, and the students of the general stage.

``CACHE_DIR/models/KEY/`` is a transformers folder, whole or not there. Its key holds all that shapes the training,
so nine tasks over one corpus distil on that corpus once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbert_dist.artifacts import changed_file, describe_files, read_json, recipe_key
from refbert_dist.config import FOLDS, SYSTEMS, Experiment, OptimConfig, SystemName
from refbert_dist.data.tokens import Part, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.locate import model_folder, weight_files
from refbert_dist.models.start import check_start, start_recipe

TRAINING_VERSION = 1
"""Raised whenever the same settings would train another model."""
TRAINING = "training.json"
"""In every model's folder: its budget, and for a shared one what it was made from."""
PHASES = {
    *("general", "intermediate", "prediction", "temperature", "prediction_mean", "keep", "evaluate_steps"),
    *("rate_factors", "seed"),
}
"""Settings of ``distill`` that shape other students than those of the general stage, or are in their keys otherwise."""


def task_teacher(exp: Experiment, fold: int | None = None) -> Path:
    """Folder of the fine-tuned teacher, or of the one that was not fine-tuned on the rows of ``fold``."""
    recipe = _training(exp, "train", exp.finetune)
    if exp.teacher.head != "bert":
        recipe["head"] = exp.teacher.head
    if fold is not None:
        recipe |= {"without": fold, "folds": FOLDS}
    return _folder(exp, "task-teacher", recipe)


def shared_models(exp: Experiment) -> dict[Path, Part]:
    """Folders of the trained models that this experiment shares with others, and the data of each."""
    found: dict[Path, Part] = {}
    if exp.corpus:
        found |= dict.fromkeys((general_student(exp, system) for system in exp.trained_systems()), "corpus")
    if exp.task:
        found |= dict.fromkeys((task_teacher(exp, fold) for fold in (None, *exp.folds())), "train")
    return found


def general_student(exp: Experiment, system: SystemName) -> Path:
    """Folder of a student that has been through the general stage."""
    # What was added later counts only where it is used: the keys of older students stay as they are.
    start = {} if exp.student.init == "random" else {"init": start_recipe(exp)}
    later = {"labels"} if exp.distill.weights.mlm else {"labels", "mlm"}
    unused = PHASES | (set() if exp.distill.padding == "counted" else {"padding"})
    recipe = {
        **_training(exp, "corpus", exp.distill.general),
        "student": exp.student.model_dump(mode="json", exclude={"init"}) | start,
        "references": None,
        "distill": exp.distill.model_dump(
            mode="json",
            exclude={**dict.fromkeys(unused, True), "weights": later},
        ),
    }
    if exp.reads(system, "general"):
        # Of labels nothing is known in this stage, nor does it matter whether there is another that reads references.
        unused = {"stored_count", "stages", "label", "own_text"} | (
            {"normalize"} if exp.references.normalize else set()
        )
        unused |= {"gate", "gate_start"} if exp.references.gate == "none" else set()
        unused |= set() if exp.references.memory else {"memory"}
        unused |= {"own_edits"} if system != "own" or not exp.references.own_edits else set()
        recipe["references"] = exp.references.model_dump(mode="json", exclude=unused)
        if system != "refbert" and not SYSTEMS[system].of_task:
            recipe["system"] = system
    if "cache" in (exp.distill.targets, exp.references.states):
        # What was stored with a loss is not quite what the teacher said.
        recipe["stored"] = exp.cache.model_dump(mode="json", include={"codec", "precision"})
    return _folder(exp, "general-student", recipe)


def _training(exp: Experiment, part: Part, optim: OptimConfig) -> dict[str, Any]:
    return {
        "version": TRAINING_VERSION,
        "teacher": exp.teacher.model,
        "tokens": tokens_artifact(exp, part).path.name,
        "optim": optim.model_dump(mode="json", exclude=set() if optim.until < 1.0 else {"until"}),
        **({} if exp.engine.optimizer == "adamw" else {"optimizer": exp.engine.optimizer}),
        "micro_batch_size": exp.engine.micro_batch_size,
        "gradient_clipping": exp.engine.gradient_clipping,
        "shuffle_window": exp.engine.shuffle_window,
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


def made_from(exp: Experiment, part: Part) -> dict[str, Any]:
    """What a shared model's key cannot tell: the content of the teacher's files and of the data, for its record."""
    return {
        "sources": describe_files(weight_files(model_folder(exp.teacher.model))),
        "data": tokens_artifact(exp, part).manifest()["fingerprint"],
    }


def check_shared(exp: Experiment) -> None:
    """Refuse students that cannot start, and shared models that were trained from another teacher or other data."""
    check_start(exp)
    for folder, part in shared_models(exp).items():
        if not is_saved(folder):
            continue
        record = training_record(folder)
        changed = changed_file(record["sources"])
        tokens = tokens_artifact(exp, part)
        if changed is None and tokens.complete and tokens.manifest()["fingerprint"] != record["data"]:
            changed = str(tokens.path)
        if changed:
            raise UserError(
                f"{changed} has changed since the model in {folder} was trained from it; set another cache.dir, or "
                "remove that folder"
            )
