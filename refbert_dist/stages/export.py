"""A self-contained model folder: weights, tokenizer, and the references that the model reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import read_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors, temporary_beside
from refbert_dist.cache.models import general_student
from refbert_dist.config import Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.models.locate import resolve_model
from refbert_dist.references.bank import ReferenceBank
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.retriever_choice import pool_retriever
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.students import load_classifier, load_encoder, model_folder

BANK = "bank"
BANK_BATCH = 64
"""Pool rows projected in one pass."""


def export_folder(exp: Experiment) -> Path:
    """Where the finished model lies."""
    return exp.run.dir / "export"


def run(exp: Experiment) -> dict[str, Any]:
    """Write ``RUN_DIR/export`` for the experiment's first system; returns its size in bytes."""
    system = exp.trained_systems()[0]
    final = export_folder(exp)
    temporary = temporary_beside(final)
    with explain_disk_errors(exp.run.dir):
        temporary.mkdir(parents=True)
        try:
            tokenizer = load_tokenizer(resolve_model(exp.teacher.model))
            tokenizer.model_max_length = exp.task.max_length if exp.task else exp.corpus.max_length  # type: ignore[union-attr]
            tokenizer.save_pretrained(temporary)
            if exp.task:
                student = load_classifier(model_folder(exp, f"prediction-{system}")).eval()
                student.save_pretrained(temporary)
                if exp.reference_count(system):
                    _write_bank(exp, student, temporary / BANK)
            else:
                load_encoder(general_student(exp, system)).save_pretrained(temporary)
            write_text(temporary / "README.md", _card(exp, system))
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return {"folder": str(final), "system": system, "bytes": size}


def _write_bank(exp: Experiment, student: Any, folder: Path) -> None:
    """Project every pool row once: the trained projections are fixed, so nothing of the teacher is needed later."""
    device = device_of(World.from_environment())
    setting = Setting(exp, "task", device)
    student.to(device)
    states = setting.reference_states()
    pool = setting.tokens
    keys: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for start in range(0, len(pool), BANK_BATCH):
        rows = np.arange(start, min(start + BANK_BATCH, len(pool)))
        with torch.inference_mode():
            projected = student.project_references(*states.rows(rows))
        lengths = np.minimum(pool.lengths[rows], exp.references.max_length).tolist()
        for found, tensor in zip((keys, values), projected, strict=True):
            found.extend(row[:length] for row, length in zip(tensor.float().cpu().numpy(), lengths, strict=True))
    texts = pool.texts()
    ReferenceBank.write(
        folder,
        texts,
        pool.documents,
        keys,
        values,
        count=exp.references.count,
        retriever=pool_retriever(exp, "train", pool, np.arange(len(pool)), texts),
        left_out=NeighbourTable.open(neighbours_artifact(exp, "dev")).left_out,
    )


def _card(exp: Experiment, system: str) -> str:
    """A short model card: what it is, how it was made, what it scored."""
    lines = [
        f"# {'RefBERT' if system == 'refbert' else 'TinyBERT-style'} student of `{exp.teacher.model}`",
        "",
        f"{exp.student.layers} layers x {exp.student.hidden}, {exp.student.heads} heads, "
        f"{exp.student.intermediate} intermediate; {exp.reference_count(system)} references an input.",  # type: ignore[arg-type]
        "",
    ]
    results = exp.run.dir / "results.json"
    if exp.task and results.exists():
        metrics = task_spec(exp.task.name).metrics
        rows = read_json(results)
        lines += [
            f"| {exp.task.name} dev | {' | '.join(metrics)} | parameters |",
            "| --- |" + " ---: |" * (len(metrics) + 1),
        ]
        for name in dict.fromkeys(row["system"] for row in rows):
            mine = {row["metric"]: row for row in rows if row["system"] == name}
            found = " | ".join(f"{mine[metric]['score']:.4f}" for metric in metrics)
            lines.append(f"| {name} | {found} | {mine[metrics[0]]['params']:,} |")
        lines.append("")
    lines += [
        "Load with `refbert_dist` installed:",
        "",
        "    import refbert_dist, transformers",
        "    model = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER)",
        "",
        "or answer text lines with `refbert predict FOLDER`, which also looks the references up in `bank/`.",
        "",
    ]
    return "\n".join(lines)
