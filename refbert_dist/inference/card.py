"""The model card: what a model is, what it scored and costs, where it comes from, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from refbert_dist.config import Experiment, system_label
from refbert_dist.data.tasks import task_spec
from refbert_dist.inference.folder import LOOKUP
from refbert_dist.models.locate import HUB_NAME


def card(
    exp: Experiment,
    system: str,
    rows: Sequence[Mapping[str, Any]],
    exported: Mapping[str, Mapping[str, float]],
    lineage: Mapping[str, Any],
) -> str:
    """Markdown with the hub's header.

    Args:
        exp: the experiment.
        system: which of its students it is.
        rows: of ``results.json``; may be empty.
        exported: scores of the folder itself, by way of computing and metric.
        lineage: what the model was made from, by name.
    """
    name = "RefBERT" if exp.reads(system) else "TinyBERT-style"  # type: ignore[arg-type]
    student = exp.student
    parts = [
        "---\n" + yaml.safe_dump(_header(exp), sort_keys=False) + "---",
        f"# {name} student of `{_shown(exp.teacher.model)}`",
        f"{student.layers} layers x {student.hidden}, {student.heads} heads, {student.intermediate} intermediate; "
        f"{_read(exp, system)}.",
    ]
    if exp.task and rows:
        parts += [f"## Scores and costs\n\n{_scores(exp.task.shown, rows)}"]
    if exp.task and exported:
        parts += [_exported(task_spec(exp.task.name).metrics, exported)]
    parts += [
        "## Lineage\n\n" + "\n".join(f"- {name}: {value}" for name, value in lineage.items()),
        _usage(exp, system),
    ]
    return "\n\n".join(parts) + "\n"


def _read(exp: Experiment, system: str) -> str:
    """What the first layer reads beside its tokens, in words."""
    memory = exp.memory_size(system)  # type: ignore[arg-type]
    beside = f" and {memory} learned states" if memory else ""
    return f"{exp.reference_count(system)} references{beside} an input"  # type: ignore[arg-type]


def looks_up_by_bm25s(exp: Experiment, system: str) -> bool:
    """Whether what :data:`LOOKUP` needs is in the folder."""
    has_bank = bool(exp.task) and exp.reference_count(system) > 0  # type: ignore[arg-type]
    return has_bank and exp.export.bank_texts and exp.references.retriever == "bm25"


def _header(exp: Experiment) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["refbert", "distillation"]}
    if exp.task:
        header["pipeline_tag"] = "text-classification"
    if _shown(exp.teacher.model) == exp.teacher.model and HUB_NAME.fullmatch(exp.teacher.model):
        header["base_model"] = exp.teacher.model
    return header


def _shown(model: str) -> str:
    """A teacher's name; of a folder only its last part, because where it lay says something about its owner alone."""
    return Path(model).name if Path(model).is_dir() else model


def _scores(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [
        f"| {task} dev | {' | '.join(metrics)} | parameters | smaller | faster |",
        "| --- |" + " ---: |" * (len(metrics) + 3),
    ]
    for name in dict.fromkeys(row["system"] for row in rows):
        mine = {row["metric"]: row for row in rows if row["system"] == name}
        first = mine[metrics[0]]
        found = " | ".join(f"{mine[metric]['score']:.4f}" for metric in metrics)
        faster = "" if first["latency_ratio"] is None else f"{first['latency_ratio']:.2f}x"
        smaller = f"{first['size_ratio']:.2f}x" if first["size_ratio"] else ""
        lines.append(
            f"| {system_label(name, first['references'], first.get('memory', 0))} | {found} | {first['params']:,} "
            f"| {smaller} | {faster} |"
        )
    if any(row.get("kept") == "best" for row in rows):
        lines += ["", "Students are kept at the step that scored best on dev, so their scores on dev were chosen."]
    timed = next((row for row in rows if row["latency_ratio"] is not None), None)
    if timed:
        lines += [
            "",
            f"Faster: forward passes of {timed['latency_batch']} x {timed['latency_length']} tokens, interleaved; "
            "references projected beforehand, their lookup not counted.",
        ]
    return "\n".join(lines)


def _exported(metrics: Sequence[str], exported: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| this folder on dev | {' | '.join(metrics)} |", "| --- |" + " ---: |" * len(metrics)]
    for way, found in exported.items():
        lines.append(f"| {way} | {' | '.join(f'{found[metric]:.4f}' for metric in metrics)} |")
    return "\n".join(lines)


def _usage(exp: Experiment, system: str) -> str:
    lines = [
        "## Use",
        "",
        "With `refbert_dist` installed:",
        "",
    ]
    if exp.task:
        given = '("a text", "another")' if task_spec(exp.task.name).is_pair else '"a text"'
        lines += [
            "    from refbert_dist import RefBertPipeline",
            f"    RefBertPipeline(FOLDER)([{given}])",
            "",
            "or `refbert predict FOLDER` for lines of text. The network alone, which is given keys and values of",
            "references, loads as any model:",
            "",
        ]
    auto = "AutoModelForSequenceClassification" if exp.task else "AutoModel"
    lines += [
        "    import refbert_dist, transformers",
        f"    model = transformers.{auto}.from_pretrained(FOLDER)",
        "",
        "and without `refbert_dist` by the code in this folder:",
        "",
        f"    model = transformers.{auto}.from_pretrained(FOLDER, trust_remote_code=True)",
    ]
    if looks_up_by_bm25s(exp, system):
        lines += ["", f"`{LOOKUP.name}` then looks references up, by bm25s; it says how."]
    return "\n".join(lines)
