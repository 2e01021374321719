"""What can be known to be wrong before any work starts: teacher folder, files, shapes. Reads no weights and no text."""

from __future__ import annotations

from pathlib import Path

from refbert_dist.augment.sources import check_augment
from refbert_dist.cache.codec import check_codec
from refbert_dist.cache.contract import is_cached, stored_layers, value_layer
from refbert_dist.config import Experiment
from refbert_dist.data.corpus import check_corpus
from refbert_dist.data.tasks import check_task, task_spec
from refbert_dist.errors import UserError
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import check_teacher_folder, teacher_info
from refbert_dist.references.neighbours import check_retriever
from refbert_dist.tracking.mlflow_sync import check_mlflow_uri


def check(exp: Experiment) -> None:
    """Raise :class:`UserError` for the first thing that cannot work."""
    if exp.tracking.mlflow:
        check_mlflow_uri(exp.tracking.mlflow_uri)
    check_teacher_folder(exp.teacher.model)
    teacher = teacher_info(exp.teacher.model)
    for name, length in _lengths(exp).items():
        if length > teacher.max_positions:
            raise UserError(
                f"{name} is {length} but the teacher has {teacher.max_positions} positions; "
                f"set {name}={teacher.max_positions} or less"
            )
    if exp.teacher.head == "tinybert" and teacher.model_type != "bert":
        raise UserError(
            f"teacher.head is 'tinybert' but teacher.model '{exp.teacher.model}' is of type '{teacher.model_type}', "
            "whose head is not BERT's; set teacher.head=bert"
        )
    layer_map(exp.distill.layer_map, exp.student.layers, teacher.layers)
    for name, layer in (("key_layer", exp.references.key_layer), ("value_layer", value_layer(exp))):
        if layer > teacher.layers:
            raise UserError(
                f"references.{name} is {layer} but the teacher has {teacher.layers} layers; use 0 to {teacher.layers}"
            )
    if exp.references.retriever == "dense" and exp.references.dense_layer > teacher.layers:
        raise UserError(
            f"references.dense_layer is {exp.references.dense_layer} but the teacher has {teacher.layers} layers; use "
            f"0 to {teacher.layers}"
        )
    check_retriever(exp)
    stored_layers(exp)
    if is_cached(exp):
        check_codec(exp.cache.codec, teacher.hidden)
    if exp.corpus:
        check_corpus(exp.corpus)
    if exp.task:
        check_task(exp.task)
        read = exp.references.own_text
        if read != "whole" and "own" in exp.trained_systems() and not task_spec(exp.task.name).is_pair:
            raise UserError(
                f"references.own_text is '{read}', but rows of {exp.task.name} are single texts; set "
                "references.own_text=whole"
            )
        if exp.task.augment:
            check_augment(exp)
    for name, folder in (("run.dir", exp.run.dir), ("cache.dir", exp.cache.dir)):
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        if not existing.is_dir():
            raise UserError(f"{name} is '{folder}' but '{existing}' is a file; choose a folder")


def _lengths(exp: Experiment) -> dict[str, int]:
    lengths = {"references.max_length": exp.references.max_length} if exp.references.count else {}
    if exp.corpus:
        lengths["corpus.max_length"] = exp.corpus.max_length
    if exp.task:
        lengths["task.max_length"] = exp.task.max_length
    if exp.benchmark:
        lengths["benchmark.lengths"] = max(exp.benchmark.lengths)
    return lengths
