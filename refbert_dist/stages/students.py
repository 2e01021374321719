"""Students on disk and at their start: a model folder is a transformers folder, whole or not there."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from refbert_dist.artifacts import write_json
from refbert_dist.artifacts.disk import (
    explain_disk_errors,
    fsync_path,
    make_folder,
    share_with_group,
    temporary_beside,
)
from refbert_dist.cache.models import TRAINING, is_saved, training_record
from refbert_dist.config import LABEL_WIDTH, SYSTEMS, Experiment, Stage, SystemName
from refbert_dist.engine.checkpoint import TrainState
from refbert_dist.models.configuration_refbert import RefBertConfig
from refbert_dist.models.locate import teacher_info
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertModel
from refbert_dist.models.start import load_start, start_config

PROJECTIONS = "projections.safetensors"
MLM_HEAD = "mlm_head.safetensors"


def model_folder(exp: Experiment, job: str) -> Path:
    """Where a job of the task stage leaves its model."""
    return exp.run.dir / "models" / job


def save_folder(folder: Path, write: Callable[[Path], None], training: dict[str, Any]) -> None:
    """Write a model folder under a temporary name and rename it: a reader never sees half of one.

    Where another run has left the same model meanwhile, that one stands.
    """
    temporary = temporary_beside(folder)
    with explain_disk_errors(folder.parent):
        make_folder(folder.parent)
        temporary.mkdir()
        try:
            write(temporary)
            write_json(temporary / TRAINING, training)
            share_with_group(temporary)
            for path in temporary.iterdir():
                share_with_group(path)
                fsync_path(path)
            if not is_saved(folder):  # what a person or a broken disk left there
                shutil.rmtree(folder, ignore_errors=True)
            try:
                temporary.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def add_record(state: TrainState, before: Path | None) -> dict[str, Any]:
    """The budget of a job, added to the budget of the model it started from, and what is to be known of its end."""
    earlier = {"steps": 0, "samples": 0, "seconds": 0.0, "skipped": 0} | (training_record(before) if before else {})
    record = {
        "steps": state.step + earlier["steps"],
        "samples": state.samples + earlier["samples"],
        "seconds": round(state.seconds + earlier["seconds"], 1),
        "skipped": state.skipped + earlier["skipped"],
    }
    if state.stalled:
        record["stalled"] = state.stalled
    if state.best_step:
        record["best"] = {"step": state.best_step, "score": round(state.best_score, 6)}
    return record


def student_config(exp: Experiment, system: SystemName, stage: Stage = "task", **extra: Any) -> RefBertConfig:
    """The student's shape; vocabulary and positions are the teacher's."""
    teacher = teacher_info(exp.teacher.model)
    references = exp.references
    labelled = stage == "task" and exp.reads_labels(system)
    width = exp.student.hidden if system == "student" else teacher.hidden
    return RefBertConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=exp.student.hidden,
        num_hidden_layers=exp.student.layers,
        num_attention_heads=exp.student.heads,
        intermediate_size=exp.student.intermediate,
        hidden_dropout_prob=exp.student.dropout,
        attention_probs_dropout_prob=exp.student.dropout,
        max_position_embeddings=teacher.max_positions,
        type_vocab_size=2,
        pad_token_id=teacher.pad_token_id,
        reference_size=width + (LABEL_WIDTH if labelled else 0),
        reference_count=exp.reference_count(system, stage),
        reference_memory=exp.memory_size(system, stage),
        reference_max_length=(references.max_length if SYSTEMS[system].reads_text else 0) + labelled,
        reference_key_layer=references.key_layer,
        reference_value_layer=references.value_layer,
        reference_label=references.label if labelled else "none",
        tie_reference_projections=references.tie_projections,
        reference_normalize=references.normalize,
        reference_gate=references.gate,
        reference_gate_start=references.gate_start,
        **start_config(exp),
        **extra,
    )


def new_encoder(exp: Experiment, system: SystemName, stage: Stage = "task", start: Path | None = None) -> RefBertModel:
    """A student of a stage, from ``student.init``, or from what an earlier job left in the folder ``start``.

    All systems share their start; only what reads references, and a memory, come on top, from ``start`` if that has it.
    """
    torch.manual_seed(exp.student_seed(stage))
    plain = RefBertModel(student_config(exp, "tinybert", stage), add_pooling_layer=False)
    if start is None:
        load_start(exp, plain)
    student = plain
    if exp.reads(system, stage):
        student = RefBertModel(student_config(exp, system, stage), add_pooling_layer=False)
        student.load_state_dict(plain.state_dict(), strict=False)
    if start is not None:
        _take(student, load_encoder(start).state_dict())
    return student


def _take(student: RefBertModel, earlier: dict[str, torch.Tensor]) -> None:
    """Load weights of an earlier stage, as far as this one has them.

    A projection that reads labels now, and did not then, keeps its own columns for them.
    """
    own = student.state_dict()
    for name, weight in earlier.items():
        if name in own and own[name].shape != weight.shape:
            earlier[name] = torch.cat([weight, own[name][:, weight.shape[1] :]], dim=1)
    student.load_state_dict(earlier, strict=False)


def load_encoder(folder: Path) -> RefBertModel:
    """The encoder that an earlier job left."""
    encoder: RefBertModel = RefBertModel.from_pretrained(folder, add_pooling_layer=False)
    return encoder


def new_classifier(exp: Experiment, system: SystemName, encoder_folder: Path, num_labels: int) -> Any:
    """A classifier (regression where ``num_labels`` is 1) around the encoder in ``encoder_folder``.

    Its pooler and head are new, and the same for every system.
    """
    torch.manual_seed(exp.student_seed("task"))
    head: dict[str, Any] = {
        "num_labels": num_labels,
        "problem_type": "regression" if num_labels == 1 else "single_label_classification",
        "classifier_head": exp.teacher.head,
    }
    student = RefBertForSequenceClassification(student_config(exp, "tinybert", **head))
    if exp.reads(system):
        plain, student = student, RefBertForSequenceClassification(student_config(exp, system, **head))
        student.load_state_dict(plain.state_dict(), strict=False)
    student.bert.load_state_dict(load_encoder(encoder_folder).state_dict(), strict=False)
    return student


def load_classifier(folder: Path) -> RefBertForSequenceClassification:
    """The classifier that the prediction job left."""
    student: RefBertForSequenceClassification = RefBertForSequenceClassification.from_pretrained(folder)
    return student


def save_projections(folder: Path, projections: torch.nn.Module) -> None:
    """Width maps of the hidden losses: not part of the model, but the next stage continues with them."""
    _save_tensors(projections, folder / PROJECTIONS)


def save_mlm_head(folder: Path, head: torch.nn.Module) -> None:
    """The head for masked tokens: not part of the model either, kept for whoever wants to go on with it."""
    _save_tensors(head, folder / MLM_HEAD)


def _save_tensors(module: torch.nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)


def load_projections(folder: Path, projections: torch.nn.Module) -> None:
    """Continue with the width maps of an earlier stage."""
    projections.load_state_dict(load_file(folder / PROJECTIONS))
