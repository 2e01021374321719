"""The report of a real run, of one that is under way, and of one that has only begun."""

import re
import shutil
from pathlib import Path

import pytest
from pages import Page, draw
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import Artifact, read_json, write_json
from refbert_dist.config import Experiment
from refbert_dist.references.neighbours import neighbours_artifact
from refbert_dist.report.run import write_report
from refbert_dist.rundir import open_run
from refbert_dist.tracking.progress import Progress

JOBS = ["general-refbert", "finetune", "intermediate-refbert", "prediction-refbert"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    exp = tiny_experiment(tmp_path_factory.mktemp("reported"), 'systems=["refbert"]')
    pipeline.run(exp, ["evaluate"])
    return exp


@pytest.fixture
def report(finished: Experiment) -> Page:
    return Page(write_report(finished))


def test_results_are_those_of_the_file(finished: Experiment, report: Page) -> None:
    rows = report.table("system", "accuracy", "f1")
    assert [row[0] for row in rows] == ["teacher", "2 neighbours' labels", "RefBERT k=2"]
    scores = {(row["system"], row["metric"]): row for row in read_json(finished.run.dir / "results.json")}
    assert float(rows[2][1]) == pytest.approx(scores["refbert", "accuracy"]["score"], rel=1e-3)
    assert rows[1][3] == "-" and rows[2][3] == f"{scores['refbert', 'accuracy']['params']:,}"


def test_runs_without_timing_have_no_columns_for_it(finished: Experiment, tmp_path: Path) -> None:
    rows = read_json(finished.run.dir / "results.json")
    assert "latency, ms" in Page(write_report(finished)).text
    untimed = _moved(finished, tmp_path)
    for row in rows:
        row |= dict.fromkeys(("latency_ms", "latency_ratio", "latency_batch", "latency_length"))
    write_json(untimed.run.dir / "results.json", rows)
    found = Page(write_report(untimed))
    assert "atency" not in "".join(map(str, found.tables[1])) and len(found.table("system", "accuracy")) == 3


def test_every_training_job_has_a_chart_and_every_stage_a_row(finished: Experiment, report: Page) -> None:
    assert report.charts == len(JOBS)
    assert all(job in report.text for job in JOBS)
    stages = {row[0]: row for row in report.table("stage", "finished")}
    assert list(stages) == [stage.name for stage in pipeline.STAGES if stage.wanted(finished)]
    assert stages["distill-task"][3] == "1" and stages["export"][1:] == ["-", "-", "-"]


def test_references_cache_and_provenance_are_told(finished: Experiment, report: Page) -> None:
    parts = {row[0]: row for row in report.table("part", "samples")}
    assert list(parts) == ["corpus", "train", "dev"] and parts["dev"][1:3] == ["24", "2"]
    told = {row[0]: row[1:] for row in report.table("labels of references", "train")}
    assert all(0 <= float(share) <= 1 for share in told["nearest"]) and told["vote of 2, accuracy"][2] == "-"
    cached = {row[0]: row for row in report.table("what", "samples")}
    assert cached["teacher states, task"][1] == "60" and cached["teacher states, task"][-1] == ""
    assert len(report.table("started", "host")) == 1
    assert "max_position" not in report.text and "shard_tokens: 1500" in report.text


def test_what_another_run_has_made_is_told_from_what_is_missing(finished: Experiment, tmp_path: Path) -> None:
    other = finished.model_copy(update={"run": finished.run.model_copy(update={"dir": tmp_path / "other"})})
    with open_run(other):
        found = Page(write_report(other))
    stages = {row[0]: row[1] for row in found.table("stage", "finished")}
    assert stages["finetune"] == "made by another run" and stages["distill-task"] == "-"
    assert "evaluate has not run" in found.text and found.charts == 0


def test_a_run_under_way_says_how_far_it_is(finished: Experiment, tmp_path: Path) -> None:
    going = _moved(finished, tmp_path)
    with Progress("prediction-refbert", 2000, "steps", run_dir=going.run.dir) as progress:
        progress.update(840, loss=3.21)
    assert "prediction-refbert  42 %  840/2000 steps" in Page(write_report(going)).text


def test_a_loss_that_did_not_move_is_told(finished: Experiment, tmp_path: Path) -> None:
    stuck = _moved(finished, tmp_path)
    path = stuck.run.dir / "stages" / "distill-task.json"
    record = read_json(path)
    record["result"]["refbert"]["stalled"] = "the loss is where it was"
    write_json(path, record)
    assert "distill-task, refbert: the loss is where it was" in Page(write_report(stuck)).text


def test_the_page_stands_when_the_teacher_and_the_cache_are_gone(finished: Experiment, tmp_path: Path) -> None:
    gone = _moved(finished, tmp_path)
    teacher = gone.teacher.model_copy(update={"model": str(tmp_path / "no-teacher")})
    gone = gone.model_copy(update={"teacher": teacher})
    found = Page(write_report(gone))
    assert found.charts == len(JOBS)
    assert "cannot be looked at" in found.text


@pytest.mark.browser
def test_every_chart_is_drawn_without_a_network(finished: Experiment) -> None:
    drawn = draw(write_report(finished))
    assert drawn.complaints == []
    assert drawn.dom.count('class="plot-container') == len(JOBS)
    # The first one was drawn when it had the page for itself.
    assert len(set(re.findall(r'class="main-svg"[^>]* width="([\d.]+)"', drawn.dom))) == 1
    # Loss, embedding, attention and hidden states in two jobs; one line in the others.
    assert drawn.dom.count('class="trace scatter') == 4 + 1 + 4 + 1


def test_a_mismatch_is_told(finished: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = neighbours_artifact(finished, "dev").manifest()
    assert "Mismatch" not in Page(write_report(finished)).text or manifest["mismatch"]
    told = manifest | {"mismatch": {"message": "train rows are told more"}, "held_out": 0.2}
    monkeypatch.setattr(Artifact, "manifest", lambda self: told)
    page = Page(write_report(finished))
    assert "Mismatch: train rows are told more." in page.text
    assert page.table("labels of references", "train", "held-out")


def _moved(exp: Experiment, folder: Path) -> Experiment:
    shutil.copytree(exp.run.dir, folder / "run", ignore=shutil.ignore_patterns("checkpoints", "models"))
    return exp.model_copy(update={"run": exp.run.model_copy(update={"dir": folder / "run"})})
