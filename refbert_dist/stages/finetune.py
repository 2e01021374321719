"""The task teacher: fine-tuned once, shared by all runs that would fine-tune it in the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import Artifact
from refbert_dist.cache.forward import load_teacher
from refbert_dist.cache.models import is_saved, made_from, task_teacher, training_record
from refbert_dist.config import Experiment
from refbert_dist.data.folds import row_folds
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import device_of, of_first, process_group
from refbert_dist.engine.loop import Job, train
from refbert_dist.engine.world import World
from refbert_dist.models.locate import resolve_model
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.finetune import FinetuneObjective
from refbert_dist.stages.gates import check_labels, check_teacher
from refbert_dist.stages.students import add_record, save_folder


def run(exp: Experiment) -> dict[str, Any]:
    """Train the teacher with a new head on the task; returns its budget and folder.

    For ``crossfit`` also one without the rows of each fold. Raises RefusedError where it has not learned the task.
    """
    with process_group(exp.engine.timeout_s) as world:
        for fold in (None, *exp.folds()):
            folder = task_teacher(exp, fold)
            if not of_first(is_saved(folder)):
                _train(exp, world, fold)
            Artifact(folder).register(exp.run.dir)
        device = device_of(world)
        # Here, and not only before distillation: nothing is cached from a teacher that will be refused.
        gate = check_teacher(exp, load_teacher(exp, "task").to(device), device)
    folder = task_teacher(exp)
    return {"folder": str(folder), "teacher_gate": gate, **training_record(folder)}


def _train(exp: Experiment, world: World, fold: int | None) -> None:
    assert exp.task is not None
    check_labels(exp)
    torch.manual_seed(exp.seed)
    num_labels = task_spec(exp.task.name).num_labels
    teacher = Teacher.load(exp.teacher.model, num_labels=num_labels, head=exp.teacher.head)
    tokens = TokenSet.open(tokens_artifact(exp, "train"))
    name, rows = "finetune", None
    if fold is not None:
        name, rows = f"finetune-without-{fold}", np.flatnonzero(row_folds(exp, tokens) != fold)
    objective = FinetuneObjective(teacher, tokens, num_labels, rows)
    state = train(objective, Job("finetune", name, exp.finetune, exp.run.dir, exp.seed), exp, world)
    if world.rank == 0:

        def write(path: Any) -> None:
            teacher.model.save_pretrained(path)
            load_tokenizer(resolve_model(exp.teacher.model)).save_pretrained(path)

        save_folder(task_teacher(exp, fold), write, add_record(state, None) | made_from(exp, "train"))
    torch.distributed.barrier()
