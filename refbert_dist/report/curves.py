"""Learning curves, from the metrics of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refbert_dist.report.charts import Point, Series, chart, thinned
from refbert_dist.tracking.metrics import read_metrics

NO_TERMS = ("time", "stage", "job", "step", "learning_rate", "gradient_norm", "samples")
"""What the records of a training job hold beside its losses."""


def job_charts(run_dir: Path) -> list[str]:
    """A chart of the loss and its terms for each training job of a run, in the order in which they began."""
    charts = []
    for job, records in _training(run_dir).items():
        terms = dict.fromkeys(name for record in records for name in record if name not in NO_TERMS)
        if len(terms) == 2:  # a single term is the loss itself, but for its weight
            terms = {"loss": None}
        series = [Series(term, thinned(list(_points(records, term)))) for term in terms]
        charts.append(chart(job, series, "step", "loss"))
    return charts


def losses(run_dir: Path, stage: str) -> list[Point]:
    """Step and loss of the first job of a stage; none if it has not begun, or another run has done it."""
    jobs = [records for records in _training(run_dir).values() if records[0]["stage"] == stage]
    return thinned(list(_points(jobs[0], "loss"))) if jobs else []


def _training(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Job -> its records, by step."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for record in read_metrics(run_dir, latest=True):
        if "loss" in record:
            jobs.setdefault(record["job"], []).append(record)
    return {job: sorted(records, key=lambda record: int(record["step"])) for job, records in jobs.items()}


def _points(records: list[dict[str, Any]], term: str) -> Iterator[Point]:
    for record in records:
        if term in record:
            yield record["step"], record[term]
