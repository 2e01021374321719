"""A self-contained model folder: weights, tokenizer, the references that the model reads, and what it scores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import read_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors, temporary_beside
from refbert_dist.bank.states import State
from refbert_dist.bank.writer import write_bank
from refbert_dist.cache.contract import teacher_spec
from refbert_dist.cache.models import general_student, training_record
from refbert_dist.config import Experiment, SystemName
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import TokenSet, parts, tokens_artifact
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.inference.card import card, looks_up_by_bm25s
from refbert_dist.inference.folder import BANK, CARD, add_code, projections_fingerprint, write_manifest
from refbert_dist.inference.onnx_model import FILES, Runtime, export_onnx
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.models.locate import model_folder as teacher_folder
from refbert_dist.models.locate import resolve_model, weights_fingerprint
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.retriever_choice import pool_retriever
from refbert_dist.stages.scores import scores
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, load_encoder, model_folder
from refbert_dist.tracking.progress import Progress
from refbert_dist.tracking.provenance import FILE_NAME as PROVENANCE

BANK_BATCH = 64
"""Pool rows projected in one pass."""
SCORED_AT_ONCE = 1024
"""Texts sorted by length among each other."""


def export_folder(exp: Experiment) -> Path:
    """Where the finished model lies."""
    return exp.run.dir / "export"


def run(exp: Experiment) -> dict[str, Any]:
    """Write ``RUN_DIR/export`` for the experiment's first system.

    Returns its size in bytes and, of a task, the scores on dev that the folder gives by itself, from text to answer.
    """
    system = exp.trained_systems()[0]
    final = export_folder(exp)
    temporary = temporary_beside(final)
    with explain_disk_errors(exp.run.dir):
        temporary.mkdir(parents=True)
        try:
            _write_model(exp, system, temporary)
            lineage = _lineage(exp, system)
            # Twice: what is sealed can be scored, and the card is written when the scores are known.
            _seal(exp, system, temporary, lineage)
            found = _scores(exp, temporary) if exp.task else {}
            results = exp.run.dir / "results.json"
            rows = read_json(results) if exp.task and results.exists() else []
            write_text(temporary / CARD, card(exp, system, rows, found, lineage))
            _seal(exp, system, temporary, lineage)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return {"folder": str(final), "system": system, "bytes": size, "scores": found}


def _write_model(exp: Experiment, system: SystemName, folder: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(exp.teacher.model))
    tokenizer.model_max_length = exp.task.max_length if exp.task else exp.corpus.max_length  # type: ignore[union-attr]
    tokenizer.save_pretrained(folder)
    if not exp.task:
        student = load_encoder(general_student(exp, system))
        add_code(folder, student.config, with_lookup=False)
        student.save_pretrained(folder)
        return
    student = load_classifier(model_folder(exp, f"prediction-{system}")).eval()
    names = task_spec(exp.task.name).label_names
    if names:
        student.config.id2label = dict(enumerate(names))
        student.config.label2id = {name: label for label, name in enumerate(names)}
    add_code(folder, student.config, looks_up_by_bm25s(exp, system))
    student.save_pretrained(folder)
    if exp.reference_count(system):
        _write_bank(exp, student, folder)
    if exp.export.onnx:
        export_onnx(folder)


def _write_bank(exp: Experiment, student: Any, folder: Path) -> None:
    """Project every pool row once: the trained projections are fixed, so nothing of the teacher is needed later."""
    setting = Setting(exp, "task", device_of(World.from_environment()))
    pool = setting.tokens
    texts = pool.texts()
    write_bank(
        folder / BANK,
        texts,
        _projected(setting, student.to(setting.device)),
        count=exp.references.count,
        retriever=pool_retriever(exp, "train", pool, np.arange(len(pool)), texts),
        left_out=NeighbourTable.open(neighbours_artifact(exp, "dev")).left_out,
        codec=exp.export.bank_codec,
        keep_texts=exp.export.bank_texts,
        projections=projections_fingerprint(folder),
        teacher=weights_fingerprint(teacher_folder(teacher_spec(exp, "task"))),
    )


def _projected(setting: Setting, student: Any) -> Iterator[State]:
    states, pool = setting.reference_states(), setting.tokens
    for start in range(0, len(pool), BANK_BATCH):
        rows = np.arange(start, min(start + BANK_BATCH, len(pool)))
        with torch.inference_mode():
            keys, values = (part.float().cpu().numpy() for part in student.project_references(*states.rows(rows)))
        for place, length in enumerate(states.lengths(rows).tolist()):
            yield keys[place, :length], values[place, :length]


def _scores(exp: Experiment, folder: Path) -> dict[str, dict[str, float]]:
    """What the folder scores on dev by itself, by every way of computing that it holds."""
    assert exp.task is not None
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    assert dev.labels is not None
    texts = dev.texts()
    runtimes: list[Runtime] = ["torch", *(FILES if exp.export.onnx else ())]
    found: dict[str, dict[str, float]] = {}
    with Progress("export", len(texts) * len(runtimes), "samples", run_dir=exp.run.dir) as progress:
        done = 0
        for runtime in runtimes:
            pipeline = RefBertPipeline(folder, runtime=runtime, verify=False)
            logits = []
            for start in range(0, len(texts), SCORED_AT_ONCE):
                logits.append(pipeline.logits(texts[start : start + SCORED_AT_ONCE])[0])
                done += len(logits[-1])
                progress.update(done)
            found[runtime] = scores(task_spec(exp.task.name).metrics, np.concatenate(logits), dev.labels)
    return found


def _lineage(exp: Experiment, system: SystemName) -> dict[str, Any]:
    """Names and fingerprints of what the model was made from; nothing about the place."""
    trained = general_student(exp, system) if not exp.task else model_folder(exp, f"prediction-{system}")
    budget = training_record(trained)
    lineage: dict[str, Any] = {
        "teacher": f"{weights_fingerprint(teacher_folder(exp.teacher.model))} (weights)",
        **{part: f"{tokens_artifact(exp, part).manifest()['fingerprint']} (tokens)" for part in parts(exp)},
        "training": f"{budget['steps']:,} steps, {budget['samples']:,} samples, seed {exp.seed}",
    }
    starts = exp.run.dir / PROVENANCE
    if starts.exists():
        start = read_json(starts)[-1]
        versions = {name: start["packages"][name] for name in ("torch", "transformers", "deepspeed")}
        lineage["made with"] = ", ".join(
            [f"refbert-dist {start['version']}", *(f"{name} {version}" for name, version in versions.items())]
        )
        if start["commit"]:
            lineage["commit"] = start["commit"] + (" and uncommitted changes" if start["dirty"] else "")
    return lineage


def _seal(exp: Experiment, system: SystemName, folder: Path, lineage: dict[str, Any]) -> None:
    write_manifest(
        folder,
        {
            "system": system,
            "task": exp.task.name if exp.task else None,
            "sentences": (2 if task_spec(exp.task.name).is_pair else 1) if exp.task else None,
            "export": exp.export.model_dump(mode="json"),
            "lineage": lineage,
        },
    )
