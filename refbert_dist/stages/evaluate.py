"""Scores of the teacher and of every student on the task's dev rows; all tables are made of ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from refbert_dist.artifacts import atomic_path, save_tensors, write_json
from refbert_dist.artifacts.disk import make_folder
from refbert_dist.cache.models import task_teacher, training_record
from refbert_dist.config import SYSTEMS, Experiment, SystemName
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tasks import Split, has_labels, task_spec
from refbert_dist.data.tokens import TokenSet, evaluated_parts, tokens_artifact
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.references.neighbour_vote import neighbour_vote
from refbert_dist.references.neighbours import NeighbourTable, looked_up_parts, neighbours_artifact
from refbert_dist.references.sources import encoded_by
from refbert_dist.stages.answers import Forward, answers, teacher_answers
from refbert_dist.stages.latency import median_latencies
from refbert_dist.stages.scores import SUFFIXES, answers_path, scores
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, model_folder
from refbert_dist.tracking.metrics import MetricsLog
from refbert_dist.tracking.progress import Progress

VOTE = "knn"
"""Name of the neighbours' vote among the systems."""


def run(exp: Experiment) -> dict[str, Any]:
    """Evaluate, time, and write ``RUN_DIR/results.json``; returns how many rows it has.

    Beside the students stand the teacher and the vote of the neighbours' labels (``knn``). What each of them answers
    is kept in ``RUN_DIR/answers/SYSTEM.safetensors``; MNLI's second dev set has a folder of its own in there. Without
    timing (``evaluate.latency_repeats=0``) latencies are None.
    """
    assert exp.task is not None
    spec = task_spec(exp.task.name)
    device = device_of(World.from_environment())
    scored = {part: TokenSet.open(tokens_artifact(exp, part)) for part in evaluated_parts(exp) if has_labels(part)}
    setting = Setting(exp, "task", device)
    folders = {system: model_folder(exp, f"prediction-{system}") for system in exp.trained_systems()}
    students = {system: load_classifier(folder).to(device).eval() for system, folder in folders.items()}

    parameters = {"teacher": _parameters(setting.teacher.model)}
    budgets = {"teacher": training_record(task_teacher(exp))}
    for system, student in students.items():
        parameters[system] = _parameters(student)
        budgets[system] = training_record(folders[system])
    if "dev" in looked_up_parts(exp):
        parameters[VOTE], budgets[VOTE] = 0, {"steps": 0, "samples": 0, "seconds": 0.0}
    timing = latencies(exp, setting, students, scored["dev"]) if exp.evaluate.latency_repeats else None

    facts = {
        name: {
            "params": parameters[name],
            "size_ratio": round(parameters["teacher"] / parameters[name], 3) if parameters[name] else None,
            **(timing.of(name) if timing and name != VOTE else dict.fromkeys(Timing.COLUMNS)),
            "steps": budget["steps"],
            "samples": budget["samples"],
            "kept": "best" if "best" in budget else "last",
            "seconds": budget["seconds"],
        }
        for name, budget in budgets.items()
    }

    rows: list[dict[str, Any]] = []
    metrics = MetricsLog(exp.run.dir)
    total = sum(map(len, scored.values())) * len(budgets)
    with Progress("evaluate", total, "samples", run_dir=exp.run.dir) as progress:
        done = 0
        for part, tokens in scored.items():
            assert tokens.labels is not None
            neighbours = _neighbours(exp, part)
            for name, forward in _forwards(setting, students, part, tokens, neighbours).items():
                logits = []
                for answered in answers(forward, len(tokens), exp.evaluate.batch_size):
                    logits.append(answered)
                    done += len(answered)
                    progress.update(done)
                answered = np.concatenate(logits)
                _keep(exp, name, part, answered)
                by_metric = scores(spec.metrics, answered, tokens.labels)
                found = {metric + SUFFIXES[part]: score for metric, score in by_metric.items()}
                metrics.write("evaluate", f"evaluate-{name}", budgets[name]["steps"], found)
                seed = exp.student_seed("task") if name in students else exp.seed
                asked = {"system": name, "task": exp.task.shown, "seed": seed}
                memory = exp.memory_size(name) if name in students else 0  # type: ignore[arg-type]
                read = {"n": len(tokens), "references": _references_read(exp, name, neighbours), "memory": memory}
                rows += [
                    {**asked, "metric": metric, "score": round(score, 6), **read, **facts[name]}
                    for metric, score in found.items()
                ]
    write_json(exp.run.dir / "results.json", rows)
    return {"rows": len(rows), "teacher_samples": setting.teacher.samples}


def _forwards(
    setting: Setting,
    students: Mapping[SystemName, Any],
    part: Split,
    tokens: TokenSet,
    neighbours: np.ndarray | None,
) -> dict[str, Forward]:
    """What answers the rows of a part, by system."""
    taught = teacher_answers(setting.exp, setting.teacher, tokens, setting.device)
    forwards: dict[str, Forward] = {"teacher": lambda samples: torch.from_numpy(taught[samples])}
    for system, student in students.items():
        forwards[system] = student_forward(student, setting, system, part, tokens)
    if neighbours is not None:
        assert setting.tokens.labels is not None
        votes = neighbour_vote(neighbours, setting.tokens.labels, taught.shape[1])
        forwards[VOTE] = lambda samples: torch.from_numpy(votes[samples])
    return forwards


def _keep(exp: Experiment, system: str, part: Split, logits: np.ndarray) -> None:
    path = answers_path(exp.run.dir, system, part)
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        save_tensors({"logits": logits})(temporary)


def _neighbours(exp: Experiment, part: Split) -> np.ndarray | None:
    """All neighbours that are kept of a part's rows, int64 ``[N, k]``; None where none are looked up."""
    if part not in looked_up_parts(exp):
        return None
    table = NeighbourTable.open(neighbours_artifact(exp, part))
    return table.prefix(table.count)


def _references_read(exp: Experiment, system: str, neighbours: np.ndarray | None) -> int:
    if system == VOTE:
        assert neighbours is not None
        return int(neighbours.shape[1])
    return exp.reference_count(system) if system in SYSTEMS else 0  # type: ignore[arg-type]


@dataclass(frozen=True)
class Timing:
    """Forward passes of all systems on the same rows."""

    seconds: Mapping[str, float]
    """System -> median of one pass."""
    batch: int
    """Rows in it."""
    length: int
    """Tokens of the longest."""

    COLUMNS: ClassVar = ("latency_ms", "latency_ratio", "latency_batch", "latency_length")

    def of(self, system: str) -> dict[str, float]:
        """Of one system, beside the teacher, as in ``results.json``."""
        own = self.seconds[system]
        values = (round(1000 * own, 3), round(self.seconds["teacher"] / own, 3), self.batch, self.length)
        return dict(zip(self.COLUMNS, values, strict=True))


def latencies(exp: Experiment, setting: Setting, students: Mapping[SystemName, Any], dev: TokenSet) -> Timing:
    """Median forward time of every system on the same dev rows."""
    calls, samples = timed_passes(exp, setting, students, dev)
    seconds = median_latencies(calls, exp.evaluate.latency_repeats)
    return Timing(seconds, len(samples), int(dev.lengths[samples].max()))


def timed_passes(
    exp: Experiment, setting: Setting, students: Mapping[SystemName, Any], dev: TokenSet
) -> tuple[dict[str, Callable[[], object]], np.ndarray]:
    """A forward pass of every system on the same dev rows, ready to be timed, and these rows.

    References are projected beforehand as in the export. Network only: looking the references up and reading them from
    disk is not in it.
    """
    samples = np.arange(min(len(dev), exp.evaluate.latency_batch_size))
    batch = to_device(token_batch(dev, samples, setting.teacher.pad_token_id), setting.device)
    calls: dict[str, Callable[[], object]] = {"teacher": partial(setting.teacher.logits, **batch)}
    for system, student in students.items():
        inputs: dict[str, Any] = dict(batch)
        references = setting.references(system, "dev")
        if references:
            with torch.inference_mode():
                given = encoded_by(student, references.of(samples))
                keys, values = student.project_references(given["reference_keys"], given["reference_values"])
            inputs |= {"reference_keys": keys, "reference_values": values, "references_projected": True}
            inputs["reference_mask"] = given["reference_mask"]
        calls[system] = partial(student, **inputs)
    return {name: torch.inference_mode()(call) for name, call in calls.items()}, samples


def student_forward(student: Any, setting: Setting, system: SystemName, part: Split, tokens: TokenSet) -> Forward:
    """A student on the rows of a part, whose tokens are ``tokens``, beside what it reads as references."""
    references = setting.references(system, part)

    @torch.inference_mode()
    def forward(samples: np.ndarray) -> torch.Tensor:
        batch = to_device(token_batch(tokens, samples, setting.teacher.pad_token_id), setting.device)
        given = encoded_by(student, references.of(samples)) if references else {}
        logits: torch.Tensor = student(**batch, **given).logits
        return logits

    return forward


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
