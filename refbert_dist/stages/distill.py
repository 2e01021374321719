"""Distillation of every system of the experiment at equal budget: general stage, then the task's two phases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from refbert_dist.artifacts import Artifact
from refbert_dist.cache.contract import scope_part
from refbert_dist.cache.models import general_student, is_saved, made_from, training_record
from refbert_dist.config import Experiment, Stage, SystemName
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import Part, longest
from refbert_dist.engine.distributed import device_of, of_first, process_group
from refbert_dist.engine.loop import Choice, Job, Objective, train
from refbert_dist.engine.world import World
from refbert_dist.errors import UserError
from refbert_dist.objectives.distill import EncoderObjective, PredictionObjective
from refbert_dist.stages.choice import BestOnDev
from refbert_dist.stages.gates import check_teacher
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import (
    PROJECTIONS,
    add_record,
    load_projections,
    model_folder,
    new_classifier,
    new_encoder,
    save_folder,
    save_mlm_head,
    save_projections,
)


def general(exp: Experiment) -> dict[str, Any]:
    """Teach every system the teacher's language on the corpus."""
    with process_group(exp.engine.timeout_s) as world:
        setting = Setting(exp, "general", device_of(world))
        for system in exp.trained_systems():
            _encoder_job(exp, world, setting, system, "general", None)
    students = {system: general_student(exp, system) for system in exp.trained_systems()}
    for folder in students.values():
        Artifact(folder).register(exp.run.dir)
    return {**_records(students), "teacher_samples": setting.teacher.samples}


def task(exp: Experiment) -> dict[str, Any]:
    """Teach every system the task: hidden states and attention first, then predictions.

    Raises RefusedError where the teacher does not know the task.
    """
    assert exp.task is not None
    num_labels = task_spec(exp.task.name).num_labels
    with process_group(exp.engine.timeout_s) as world:
        setting = Setting(exp, "task", device_of(world))
        # A gold score is that of the row itself, not of an altered copy: as in TinyBERT's code.
        gold = num_labels == 1
        part, tokens = scope_part("task") if gold else setting.part, setting.tokens if gold else setting.trained
        gate = check_teacher(exp, setting.teacher, setting.device)
        for system in exp.trained_systems():
            start = general_student(exp, system) if exp.corpus else None
            _encoder_job(exp, world, setting, system, "intermediate", start)
            encoder = model_folder(exp, f"intermediate-{system}")
            folder = model_folder(exp, f"prediction-{system}")
            if of_first(is_saved(folder)):
                continue
            student = new_classifier(exp, system, encoder, num_labels)
            objective = PredictionObjective(
                student,
                tokens,
                setting.states,
                setting.references(system, part),
                exp.distill,
                setting.teacher.pad_token_id,
            )
            choice = None
            if exp.distill.keep == "best":
                choice = BestOnDev(exp, setting.references(system, "dev"), objective.pad_id, setting.device)
            name, seed = f"prediction-{system}", exp.student_seed("task")
            job = Job("distill-task", name, exp.distill.optim("prediction", system), exp.run.dir, seed)
            _train_and_save(exp, world, objective, job, student, folder, encoder, choice=choice)
    folders = {system: model_folder(exp, f"prediction-{system}") for system in exp.trained_systems()}
    return {"teacher_gate": gate, **_records(folders), "teacher_samples": setting.teacher.samples}


def _records(folders: Mapping[SystemName, Path]) -> dict[str, Any]:
    return {system: training_record(folder) for system, folder in folders.items()}


def _encoder_job(
    exp: Experiment,
    world: World,
    setting: Setting,
    system: SystemName,
    phase: Literal["general", "intermediate"],
    start: Path | None,
) -> None:
    name = f"{phase}-{system}"
    scope: Stage
    if phase == "general":
        scope, optim, folder = "general", exp.distill.general, general_student(exp, system)
    else:
        scope, optim, folder = "task", exp.distill.optim(phase, system), model_folder(exp, name)
    if of_first(is_saved(folder)):
        return
    student = new_encoder(exp, system, scope, start)
    seed = exp.student_seed(scope)
    torch.manual_seed(seed)
    objective = EncoderObjective(
        student,
        setting.teacher,
        setting.trained,
        setting.states,
        setting.references(system, setting.part),
        exp.distill,
        _mask_token(exp) if phase == "general" and exp.distill.weights.mlm else None,
        length=longest(exp, scope_part(scope)),
    )
    if start and (start / PROJECTIONS).exists():
        load_projections(start, objective.module.projections)
    job = Job(f"distill-{scope}", name, optim, exp.run.dir, seed)
    shared: Part | None = "corpus" if phase == "general" else None
    _train_and_save(exp, world, objective, job, student, folder, start, shared)


def _mask_token(exp: Experiment) -> int:
    tokenizer = load_tokenizer(exp.teacher.model)
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"distill.weights.mlm is above 0 but the tokenizer of teacher.model '{exp.teacher.model}' has no mask "
            "token; set distill.weights.mlm=0"
        )
    return int(tokenizer.mask_token_id)


def _train_and_save(
    exp: Experiment,
    world: World,
    objective: Objective,
    job: Job,
    student: Any,
    folder: Path,
    before: Path | None,
    shared: Part | None = None,
    choice: Choice | None = None,
) -> None:
    """``before``: the model that the student started from. ``shared``: the data of a model that other runs may use."""
    state = train(objective, job, exp, world, choice)
    if world.rank == 0:

        def write(path: Path) -> None:
            student.save_pretrained(path)
            if isinstance(objective, EncoderObjective):
                save_projections(path, objective.module.projections)
                if objective.module.mlm_head is not None:
                    save_mlm_head(path, objective.module.mlm_head)

        save_folder(folder, write, add_record(state, before) | (made_from(exp, shared) if shared else {}))
    torch.distributed.barrier()
