"""What is read from a run directory for MLflow."""

import datetime
import json
import os
from pathlib import Path

import pytest
from mlflow_stores import Stored, sync

from refbert_dist.tracking.mlflow_facts import figures, flatten, origin, parameters, started_ms
from refbert_dist.tracking.provenance import write_provenance


def row(system: str, metric: str, score: float | None, **others: float | None) -> dict[str, object]:
    common = {"task": "MRPC", "seed": 0, "params": 7, "latency_ms": None, "steps": 14, "seconds": 2.5}
    return {"system": system, "metric": metric, "score": score, **common, **others}


def save_results(run_dir: Path, *rows: dict[str, object]) -> None:
    (run_dir / "results.json").write_text(json.dumps(rows))


def test_nested_settings_become_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": "x", "e": (1, 2), "f": True}) == {
        "a.b.c": "1",
        "d": "x",
        "e": "[1, 2]",
        "f": "true",
    }


def test_the_parameters_of_a_search_are_its_own(tmp_path: Path) -> None:
    assert parameters(tmp_path) == {}
    (tmp_path / "experiment.yaml").write_text("seed: 3\n")
    assert parameters(tmp_path) == {"seed": "3"}
    (tmp_path / "search.yaml").write_text("space: {student.layers: [2, 4]}\nexperiment: {seed: 3}\n")
    assert parameters(tmp_path) == {"space.student.layers": "[2, 4]", "experiment.seed": "3"}


def test_results_are_figures_of_each_system_without_what_is_not_known(tmp_path: Path) -> None:
    assert figures(tmp_path) == []
    save_results(
        tmp_path,
        row("refbert", "accuracy", 0.75),
        row("refbert", "f1", 0.5),
        row("teacher", "accuracy", None, latency_ms=4.0, steps=100),
    )
    os.utime(tmp_path / "results.json", ns=(0, 1_700_000_000_123_000_000))
    found = figures(tmp_path)
    assert {(point.name, point.value, point.step) for point in found} == {
        ("refbert.accuracy", 0.75, 14),
        ("refbert.f1", 0.5, 14),
        ("refbert.params", 7, 14),
        ("refbert.seconds", 2.5, 14),
        ("teacher.params", 7, 100),
        ("teacher.latency_ms", 4.0, 100),
        ("teacher.seconds", 2.5, 100),
    }
    assert len(found) == 7 and {point.time_ms for point in found} == {1_700_000_000_123}


def test_the_origin_is_that_of_the_latest_start_and_of_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    first = write_provenance(tmp_path)
    tags = origin(tmp_path)
    assert tags["refbert.run_dir"] == str(tmp_path)
    assert tags["refbert.hostname"] == first["hostname"] and tags["refbert.python"] == first["python"]
    assert "refbert.slurm_jobs" not in tags

    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write_provenance(tmp_path)
    starts = json.loads((tmp_path / "provenance.json").read_text())
    starts[1] |= {"hostname": "elsewhere", "commit": None, "dirty": True}
    (tmp_path / "provenance.json").write_text(json.dumps(starts))
    (tmp_path / "submitted").mkdir()
    jobs = [
        {"stage": stage, "job_id": job} for stage, job in (("prepare", "12"), ("retrieve", "13"), ("retrieve", "77"))
    ]
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    (tmp_path / "submitted" / "jobs.jsonl").write_text(lines + '{"stage": "torn')
    tags = origin(tmp_path)
    assert (tags["refbert.hostname"], tags["refbert.dirty"]) == ("elsewhere", "true")
    assert "refbert.commit" not in tags
    assert tags["refbert.slurm_jobs"] == "12 13 77"
    assert started_ms(tmp_path) == datetime.datetime.fromisoformat(first["started"]).timestamp() * 1000


@pytest.mark.usefixtures("store_made")
def test_figures_and_tags_follow_the_run(run_dir: Path) -> None:
    copy = sync(run_dir)
    save_results(run_dir, row("refbert", "accuracy", 0.5))
    copy.sync_once()
    save_results(run_dir, row("refbert", "accuracy", 0.75, steps=20))
    (run_dir / "submitted").mkdir()
    (run_dir / "submitted" / "jobs.jsonl").write_text('{"stage": "prepare", "job_id": "12"}\n')
    copy.sync_once()
    copy.sync_once()
    store = Stored(run_dir)
    assert [point[:2] for point in store.points("run", "refbert.accuracy")] == [(14, 0.5), (20, 0.75)]
    run = store.runs["run"].data
    assert run.metrics == {"refbert.accuracy": 0.75, "refbert.params": 7, "refbert.seconds": 2.5}
    assert run.tags["refbert.slurm_jobs"] == "12"
    assert "results.json" in store.artifacts("run")
