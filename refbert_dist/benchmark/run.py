"""The stage behind ``refbert benchmark``: measure all, and write ``RUN_DIR/benchmark``."""

from __future__ import annotations

import platform
import re
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from refbert_dist.artifacts import write_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors
from refbert_dist.benchmark.inputs import random_inputs
from refbert_dist.benchmark.memory import peak_bytes
from refbert_dist.benchmark.models import Folders, write_models
from refbert_dist.benchmark.systems import Opened, System, reading
from refbert_dist.benchmark.tables import html, markdown
from refbert_dist.benchmark.texts import Texts, batches, benchmark_texts
from refbert_dist.config import BenchmarkConfig, Experiment, Way
from refbert_dist.inference.folder import BANK
from refbert_dist.inference.networks import usable_device
from refbert_dist.inference.onnx_model import FILES
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.stages.latency import Seconds, taken_in_turns
from refbert_dist.tracking.progress import Progress
from refbert_dist.tracking.provenance import installed_version

TURN_S = 0.2
"""A system's turn is as many calls as fit."""
TASK_BATCH = 32

JSON, MARKDOWN, HTML = "benchmark.json", "benchmark.md", "benchmark.html"
Measured = dict[str, Any]


def run(exp: Experiment) -> dict[str, Any]:
    """Write ``benchmark.json`` (all that was measured), and as tables ``benchmark.md`` and ``benchmark.html``."""
    settings = exp.benchmark
    assert settings
    folder = exp.run.dir / "benchmark"
    models = folder / "models"
    with explain_disk_errors(exp.run.dir):
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir(parents=True)
        try:
            texts = benchmark_texts(exp, settings)
            found = _measure(exp, settings, texts, write_models(exp, settings, texts, models))
        finally:
            shutil.rmtree(models, ignore_errors=True)
        write_text(folder / MARKDOWN, markdown(found))
        write_text(folder / HTML, html(found))
        write_json(folder / JSON, found)
    return {"folder": str(folder)}


def _measure(exp: Experiment, settings: BenchmarkConfig, texts: Texts, folders: Folders) -> Measured:
    systems = [
        System("teacher"),
        System("tinybert"),
        *(System("refbert", count) for count in settings.reference_counts),
    ]
    opened = {way: Opened(folders, way, exp.references.max_length) for way in settings.ways}
    cases = [(batch, length) for batch in settings.batch_sizes for length in settings.lengths]
    counts = [count for count in settings.reference_counts if count]
    compared = len(systems) * len(opened)
    turns = len(cases) * (2 * compared + 4 * len(counts)) + (4 if folders.task else 0)
    network, answers, steps = [], [], []
    with Progress("benchmark", turns * settings.rounds, "turns", run_dir=exp.run.dir) as progress:
        shown = _Counter(progress)
        shown.tick(0)
        for batch, length in cases:
            at = {"batch": batch, "length": length}
            passes = {
                (system, way): its.passes(system, batch, length) for way, its in opened.items() for system in systems
            }
            network += _rows(taken_in_turns(passes, settings.rounds, TURN_S, shown.tick), at)
            given = batches(texts.asked[length], batch)
            calls = {(system, way): its.answers(system, given) for way, its in opened.items() for system in systems}
            answers += _rows(taken_in_turns(calls, settings.rounds, TURN_S, shown.tick), at)
            for count in counts:
                parts = opened[settings.ways[0]].steps(count, given)
                taken = taken_in_turns(parts, settings.rounds, TURN_S, shown.tick)
                steps.append({**at, "references": count, **{name: _median_ms(found) for name, found in taken.items()}})
        task = _task(exp, settings, texts, folders, opened[settings.ways[0]], shown) if folders.task else None
    return {
        "settings": settings.model_dump(mode="json"),
        "machine": _machine(),
        "texts": {
            "teacher": exp.teacher.model,
            "reference_length": exp.references.max_length,
            "pool": len(texts.known),
            "bank_bytes": _size(folders.refbert / BANK),
            "task": exp.task.name if exp.task else None,
            "task_pool": len(texts.task_known),
        },
        "sizes": _sizes(settings, exp.references.max_length, folders, systems),
        "network": network,
        "end_to_end": answers,
        "steps": steps,
        "task": task,
    }


class _Counter:
    """Counts turns for people."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def tick(self, turns: int = 1) -> None:
        """So many more have ended."""
        self._done += turns
        self._progress.update(self._done)


def _rows(taken: Mapping[tuple[System, Way], Seconds], at: Mapping[str, int]) -> list[Measured]:
    """One row for each system and way, with ratios to the teacher: by the first way, and by the same one."""
    medians = {key: [statistics.median(turn) for turn in rounds] for key, rounds in taken.items()}
    teacher = {way: found for (system, way), found in medians.items() if system.name == "teacher"}
    first = next(iter(teacher.values()))
    rows = []
    for (system, way), rounds in taken.items():
        own = medians[system, way]
        every = 1000 * np.concatenate(rounds)
        rows.append(
            {
                **at,
                "system": system.label,
                "way": way,
                "p50_ms": round(float(np.percentile(every, 50)), 4),
                "p95_ms": round(float(np.percentile(every, 95)), 4),
                "texts_s": round(at["batch"] / statistics.median(own), 2),
                "faster": _ratio(first, own),
                "faster_than_same_way": _ratio(teacher[way], own),
                "passes": len(every),
            }
        )
    return rows


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """How many times as fast, by rounds."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": round(statistics.median(found), 3), "least": round(min(found), 3), "most": round(max(found), 3)}


def _median_ms(rounds: Seconds) -> float:
    return round(1000 * statistics.median(statistics.median(turn) for turn in rounds), 4)


def _task(
    exp: Experiment, settings: BenchmarkConfig, texts: Texts, folders: Folders, opened: Opened, shown: _Counter
) -> Measured:
    """At the lengths that the task's texts have."""
    assert exp.task and folders.task
    count = min((count for count in settings.reference_counts if count), default=0)
    pipeline = reading(RefBertPipeline(folders.task, verify=False), count)
    pipeline.network = opened.pipeline.network
    calls = opened.on_rows(pipeline, texts.task_asked, TASK_BATCH, exp.task.max_length)
    taken = taken_in_turns(calls, settings.rounds, TURN_S, shown.tick)
    medians = {name: [statistics.median(turn) for turn in rounds] for name, rounds in taken.items()}
    return {
        "texts": len(texts.task_asked),
        "batch": TASK_BATCH,
        "padded_length": exp.task.max_length,
        "references": count,
        "systems": {
            name: {
                "texts_s": round(len(texts.task_asked) / statistics.median(own), 1),
                "faster": _ratio(medians["teacher, padded"], own),
                "faster_than_padded": _ratio(medians[f"{name.partition(',')[0]}, padded"], own),
            }
            for name, own in medians.items()
        },
    }


def _sizes(settings: BenchmarkConfig, tokens: int, folders: Folders, systems: list[System]) -> list[Measured]:
    batch = max(settings.batch_sizes)
    length = _typical(settings.lengths)
    rows = []
    for system in systems:
        folder = folders.systems[system.name]
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        graphs = {way: folder / name for way, name in FILES.items()}
        rows.append(
            {
                "system": system.label,
                "parameters": sum(weights.numel() for weights in model.parameters()),
                "bytes": (folder / "model.safetensors").stat().st_size,
                **{f"{way}_bytes": path.stat().st_size for way, path in graphs.items() if path.exists()},
                "gflop": {str(at): _gflop(model, at, system.count, tokens) for at in settings.lengths},
                "peak_bytes": peak_bytes(folder, batch, length, system.count, tokens),
                "peak_batch": batch,
                "peak_length": length,
            }
        )
    return rows


def _typical(lengths: tuple[int, ...]) -> int:
    """The middle one."""
    return sorted(lengths)[(len(lengths) - 1) // 2] if len(lengths) > 2 else max(lengths)


def _gflop(model: Any, length: int, count: int, tokens: int) -> float:
    """Operations of one text, counted as they are computed; by eager attention, because a fused one hides them."""
    given, references = random_inputs(model.config.to_dict(), 1, length, count, tokens)
    inputs: dict[str, Any] = {name: torch.from_numpy(array) for name, array in given.items()}
    if references is not None:
        names = ("reference_keys", "reference_values", "reference_mask")
        inputs |= dict(zip(names, map(torch.from_numpy, references), strict=True))
        inputs["references_projected"] = True
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return round(float(counter.get_total_flops()) / 1e9, 4)


def _machine() -> Measured:
    device = usable_device(None)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        known = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*:\s*(.+)", known.read_text()) if known.exists() else None
        name = model[1].strip() if model else platform.machine()
    return {
        "device": name,
        "type": device.type,
        "threads": torch.get_num_threads(),
        "packages": {name: installed_version(name) for name in ("torch", "transformers", "onnxruntime")},
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
