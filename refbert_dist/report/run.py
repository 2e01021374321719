"""The report of a run: what it is, what came of it, how it learnt, and where that comes from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from refbert_dist.artifacts import Artifact, write_text
from refbert_dist.config import SYSTEM_LABELS, Experiment, system_label, to_yaml
from refbert_dist.data.tokens import Part
from refbert_dist.diagnostics.tables import sheets
from refbert_dist.errors import RefBertError
from refbert_dist.pipeline import STAGES, Stage, leaves
from refbert_dist.references.informativeness import label_rows
from refbert_dist.references.neighbours import looked_up_parts, neighbours_artifact
from refbert_dist.report.curves import job_charts
from refbert_dist.report.diagnostic_charts import diagnostic_charts
from refbert_dist.report.page import (
    FILE_NAME,
    Section,
    charts,
    facts,
    folded,
    note,
    page,
    paragraph,
    table,
    verbatim,
)
from refbert_dist.rundir import stage_record, started_in
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.progress import format_duration, format_progress
from refbert_dist.tracking.provenance import FILE_NAME as PROVENANCE

UNSEEN = (RefBertError, OSError)
"""A run may be reported from a place that does not see its cache or its teacher, or when these are gone."""


def write_report(exp: Experiment) -> Path:
    """Write ``RUN_DIR/report.html`` from the files of a run, finished or not; returns its path."""
    run_dir, student = exp.run.dir, exp.student
    sections = [
        Section("What it is", facts(description(exp))),
        Section("Results", _results(run_dir)),
        Section("Learning curves", curves(run_dir)),
        *([Section("References", references(exp))] if exp.references.kept else []),
        *([Section("Diagnostics", body)] if (body := diagnostics(run_dir)) else []),
        Section("Stages", stages(exp) + under_way(run_dir)),
        Section("Cache", cached(exp)),
        Section("Provenance", provenance(run_dir)),
        Section("Settings", folded("All settings", verbatim(to_yaml(exp)))),
    ]
    task = f"the task {exp.task.shown}" if exp.task else "no task"
    subtitle = f"A student of {student.layers} layers x {student.hidden} from {exp.teacher.model}, {task}"
    path = run_dir / FILE_NAME
    write_text(path, page(f"Run {run_dir.name}", subtitle, sections))
    return path


def description(exp: Experiment) -> dict[str, Any]:
    """What an experiment is, in a few names and values."""
    student, read = exp.student, exp.references
    return {
        "teacher": exp.teacher.model,
        "corpus": exp.corpus.path if exp.corpus else None,
        "task": f"{exp.task.shown} of {exp.task.path}" if exp.task else None,
        "held out": f"{100 * exp.task.held_out:.3g} % of the training rows" if exp.task and exp.task.held_out else None,
        "student": f"{student.layers} layers x {student.hidden}, {student.heads} heads, intermediate "
        f"{student.intermediate:,}, start {student.init}",
        "references": f"k={read.count} of {read.max_length} tokens, {read.retriever}" if read.count else "none",
        "learned states": read.memory or None,
        "systems": ", ".join(exp.trained_systems()),
        "seed": exp.seed,
        "run directory": exp.run.dir,
    }


def _results(run_dir: Path) -> str:
    rows: list[dict[str, Any]] | None = read_json_or_none(run_dir / "results.json")
    if not rows:
        return paragraph("None yet: evaluate has not run.")
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    timed = rows[0]["latency_ms"] is not None
    lines = []
    for system in SYSTEM_LABELS:
        mine = {row["metric"]: row for row in rows if row["system"] == system}
        if mine:
            row = mine[metrics[0]]
            times = [row["latency_ms"], row["latency_ratio"]] if timed else []
            spent = [row["steps"], format_duration(row["seconds"])]
            scores = [mine[metric]["score"] for metric in metrics]
            name = system_label(system, row["references"], row.get("memory", 0))
            lines.append([name, *scores, row["params"] or None, row["size_ratio"], *times, *spent])
    speed = ["latency, ms", "times faster"] if timed else []
    headings = ["system", *metrics, "parameters", "times smaller", *speed, "steps", "training, h:min:s"]
    first = rows[0]
    text = f"{first['task']}, {first['n']:,} rows that nothing was trained on."
    if timed:
        text += f" Latency: a forward pass of {first['latency_batch']} x {first['latency_length']} tokens, the median."
    if any(row.get("kept") == "best" for row in rows):
        text += " Students are kept at the step that scored best on dev, so their scores on dev were chosen."
    if len(lines) > 2:
        text += " All students have the same steps, batches, rates and start; TinyBERT reads no references."
    return table(headings, lines) + note(text)


def curves(run_dir: Path) -> str:
    """The losses of each training job."""
    found = job_charts(run_dir)
    if not found:
        return paragraph("None: this run has trained nothing yet, or other runs did so before it.")
    return charts(found) + note("The loss is the weighted sum of its terms; means since the record before.")


def references(exp: Experiment) -> str:
    """How much the neighbours tell, beside random pairs."""
    try:
        with contextlib.chdir(started_in(exp.run.dir)):
            tables = [(part, neighbours_artifact(exp, part)) for part in looked_up_parts(exp)]
            found = [(part, artifact.manifest()) for part, artifact in tables if artifact.complete]
    except UNSEEN as error:
        return paragraph(f"They cannot be read: {error}.")
    if not found:
        return paragraph("None in the cache yet: retrieve has not run.")
    rows = []
    for part, manifest in found:
        overlaps = [manifest["mean_first_overlap"], manifest["mean_random_overlap"]]
        share = f"{100 * manifest['share_with_all']:.1f} %"
        rows.append([part, manifest["samples"], manifest["count"], share, *overlaps])
    headings = ["part", "samples", "neighbours stored", "samples with all", "common words, nearest", "random"]
    explained = (
        f"Found by {exp.references.retriever}. Common words: Jaccard index of a text and its nearest allowed "
        "neighbour, beside random pairs."
    )
    return table(headings, rows) + note(explained) + _labels(dict(found))


def _labels(manifests: dict[Part, dict[str, Any]]) -> str:
    """What the labels of references tell, of train and held-out rows side by side."""
    of_train, of_dev = (manifests.get(part, {}).get("label_agreement") for part in ("train", "dev"))
    if not (of_train or of_dev):
        return ""
    held_out = "held-out" if manifests.get("dev", {}).get("held_out") else "dev"
    explained = f"Labels: {(of_train or of_dev or {})['measure']} with the nearest reference, by words of the input."
    mismatch = manifests.get("dev", {}).get("mismatch")
    warning = paragraph(f"Mismatch: {mismatch['message']}.") if mismatch else ""
    headings = ["labels of references", "train", held_out, "random"]
    return table(headings, label_rows(of_train, of_dev)) + note(explained) + warning


def diagnostics(run_dir: Path) -> str:
    """What ``refbert diagnose`` has found; nothing where it was not asked."""
    found = read_json_or_none(run_dir / "diagnostics.json")
    if not found:
        return ""
    tables = "".join(
        paragraph(f"{sheet.title[0].upper()}{sheet.title[1:]}.") + table(sheet.headings, sheet.rows) + note(sheet.note)
        for sheet in sheets(found)
    )
    return charts(diagnostic_charts(found)) + tables


def stages(exp: Experiment) -> str:
    """What each stage took, and what is to be known of it."""
    rows = []
    for stage in STAGES:
        if not stage.wanted(exp):
            continue
        record = read_json_or_none(stage_record(exp.run.dir, stage.name))
        if record:
            finished = record["finished_at"].replace("T", " ")
            rows.append([stage.name, finished, format_duration(record["seconds"]), record["processes"]])
        else:
            rows.append([stage.name, "made by another run" if _done(stage, exp) else None, None, None])
    return table(["stage", "finished", "time, h:min:s", "processes"], rows) + _remarks(exp.run.dir)


def _done(stage: Stage, exp: Experiment) -> bool:
    try:
        with contextlib.chdir(started_in(exp.run.dir)):
            return stage.done(exp)
    except UNSEEN:
        return False


def under_way(run_dir: Path) -> str:
    """What a job has told last that has not come to its end."""
    found = [state for path in run_dir.glob("logs/*.progress.json") if (state := read_json_or_none(path))]
    newest = max(found, key=lambda state: float(state["time"]), default=None)
    if newest is None or newest["done"] == newest["total"]:
        return ""
    return paragraph(f"The newest sign of life: {format_progress(newest)}.")


def _remarks(run_dir: Path) -> str:
    """Losses that did not move."""
    records = [record for path in sorted(run_dir.glob("stages/*.json")) if (record := read_json_or_none(path))]
    return "".join(
        paragraph(f"{record['stage']}, {name}: {result['stalled']}")
        for record in records
        for name, result in record["result"].items()
        if isinstance(result, dict) and result.get("stalled")
    )


def cached(exp: Experiment) -> str:
    """What lies in the cache for a run."""
    try:
        with contextlib.chdir(started_in(exp.run.dir)):
            rows = [[leaf.label, *_extent(leaf.artifact)] for leaf in leaves(exp)]
    except UNSEEN as error:
        return paragraph(f"It cannot be looked at: {error}.")
    return table(["what", "samples", "tokens", "shards", "MB", ""], rows) + note(
        f"In {exp.cache.dir}, shared by all runs that ask for the same."
    )


def _extent(artifact: Artifact) -> list[Any]:
    if not artifact.complete:
        return [None, None, len(artifact.committed()), None, "not finished"]
    manifest = artifact.manifest()
    return [manifest["samples"], manifest["tokens"] or None, manifest["shards"], manifest["bytes"] / 1e6, ""]


def provenance(run_dir: Path) -> str:
    """The starts of a run, and the versions of the newest."""
    starts: list[dict[str, Any]] = read_json_or_none(run_dir / PROVENANCE) or []
    if not starts:
        return paragraph("Nothing was started here yet.")
    rows = []
    for start in starts:
        commit = (start["commit"] or "")[:12] + (", changed" if start["dirty"] else "")
        when = start["started"].replace("T", " ")
        rows.append([when, start["hostname"], start["version"], commit or None, " ".join(start["argv"][1:])])
    last = starts[-1]
    machine = {"SLURM job": last.get("slurm_job"), "python": last["python"], "platform": last["platform"]}
    machine |= {"cores": last["cpus"], **last["packages"]}
    versions = folded("Machine and versions of the newest start", facts(machine))
    return table(["started", "host", "version", "commit", "arguments"], rows) + versions
