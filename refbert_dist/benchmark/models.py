"""Model folders of the shapes that are compared, with random weights: speed asks for no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import BertForSequenceClassification

from refbert_dist.bank.states import State
from refbert_dist.bank.writer import write_bank
from refbert_dist.benchmark.texts import Texts
from refbert_dist.config import BenchmarkConfig, Experiment
from refbert_dist.data.tokenizer import tokenized
from refbert_dist.inference.folder import BANK, projections_fingerprint, write_manifest
from refbert_dist.inference.onnx_model import export_onnx
from refbert_dist.models.locate import TeacherInfo, teacher_info
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.models.teacher import bert_config
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.guards import TextPair
from refbert_dist.references.search import joined
from refbert_dist.stages.students import student_config

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Folders:
    """Where they lie."""

    teacher: Path
    """The teacher's shape, as transformers' own BERT."""
    tinybert: Path
    """The student's shape, likewise."""
    refbert: Path
    """RefBERT, with a bank of texts that were cut to a length."""
    task: Path | None
    """The same, with a bank of the task's rows."""

    @property
    def systems(self) -> dict[str, Path]:
        """Those that are compared at given lengths."""
        return {"teacher": self.teacher, "tinybert": self.tinybert, "refbert": self.refbert}


def write_models(exp: Experiment, settings: BenchmarkConfig, texts: Texts, folder: Path) -> Folders:
    """Write them below ``folder``; as ONNX graphs, too, where these are asked for."""
    most = max(settings.reference_counts)
    info = teacher_info(exp.teacher.model)
    student = exp.student
    shape = replace(
        info,
        layers=student.layers,
        hidden=student.hidden,
        heads=student.heads,
        intermediate=student.intermediate,
        type_vocab_size=2,
    )
    folders = Folders(
        _bert(info, texts, folder / "teacher"),
        _bert(shape, texts, folder / "tinybert"),
        _refbert(exp, most, texts, texts.known, folder / "refbert"),
        _refbert(exp, most, texts, texts.task_known, folder / "task") if texts.task_known else None,
    )
    if any(way.startswith("onnx") for way in settings.ways):
        for model in folders.systems.values():
            export_onnx(model)
    return folders


def _bert(info: TeacherInfo, texts: Texts, folder: Path) -> Path:
    torch.manual_seed(0)
    BertForSequenceClassification(bert_config(info)).save_pretrained(folder)
    texts.tokenizer.save_pretrained(folder)
    return folder


def _refbert(exp: Experiment, most: int, texts: Texts, known: Sequence[TextPair], folder: Path) -> Path:
    torch.manual_seed(0)
    config = student_config(exp, "refbert")
    config.reference_count = most
    RefBertForSequenceClassification(config).save_pretrained(folder)
    texts.tokenizer.save_pretrained(folder)
    if config.reference_count:
        write_bank(
            folder / BANK,
            known,
            _random_states(texts, known, exp.references.max_length, exp.student.hidden),
            count=config.reference_count,
            retriever=Bm25.build([joined(text) for text in known], "english"),
            codec=exp.export.bank_codec,
            projections=projections_fingerprint(folder),
        )
    write_manifest(folder, {"task": None, "sentences": 1 if known[0][1] is None else 2})
    return folder


def _random_states(texts: Texts, known: Sequence[TextPair], longest: int, width: int) -> Iterator[State]:
    rng = np.random.default_rng(0)
    for start in range(0, len(known), ROWS_AT_ONCE):
        ids, _ = tokenized(texts.tokenizer, known[start : start + ROWS_AT_ONCE])
        for row in ids:
            keys, values = rng.standard_normal((2, min(len(row), longest), width), np.float32)
            yield keys, values
