import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from refbert_dist.tracking.metrics import MetricsLog, read_metrics


def test_a_record_is_one_line_with_time_stage_job_step_and_values(tmp_path):
    with MetricsLog(tmp_path / "run") as log:
        log.write("distill-general", "refbert", 10, {"loss": 1.5, "note": "ä\nb"})
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time") > 1.6e9
    assert record == {"stage": "distill-general", "job": "refbert", "step": 10, "loss": 1.5, "note": "ä\nb"}
    assert [item["step"] for item in read_metrics(tmp_path / "run")] == [10]


def test_a_record_is_on_disk_before_the_log_is_closed(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("s", "j", 1, {})
    assert len(list(read_metrics(tmp_path))) == 1
    log.close()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("s", "j", 1, {"loss": float("nan"), "norm": float("inf"), "rate": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in line and "Infinity" not in line
    (record,) = read_metrics(tmp_path)
    assert (record["loss"], record["norm"], record["rate"]) == (None, None, 0.5)


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_line_is_closed_off_and_ignored(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(tmp_path) as log:
        log.write("s", "j", 1, {"loss": 1.0})
        log.write("s", "j", 2, {"loss": 2.0})
    os.truncate(path, path.stat().st_size - cut)
    # Cutting only the newline loses nothing.
    whole = [1, 2] if cut == 1 else [1]
    assert [record["step"] for record in read_metrics(tmp_path)] == whole
    with MetricsLog(tmp_path) as log:
        log.write("s", "j", 3, {"loss": 3.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [*whole, 3]


def test_records_that_a_resume_wrote_again_count_once_when_asked(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write("train", "a", step, {"loss": float(step)})
        log.write("train", "b", 20, {"loss": -1.0})
        log.write("evaluate", "a", 20, {"score": 0.9})
        for step in (20, 30, 40):
            log.write("train", "a", step, {"loss": step + 0.5})
    assert len(list(read_metrics(tmp_path))) == 8
    latest = list(read_metrics(tmp_path, latest=True))
    assert [(item["job"], item["step"], item["loss"]) for item in latest if item["stage"] == "train"] == [
        ("a", 10, 10.0),
        ("a", 20, 20.5),
        ("a", 30, 30.5),
        ("b", 20, -1.0),
        ("a", 40, 40.5),
    ]
    assert [item["score"] for item in latest if item["stage"] == "evaluate"] == [0.9]


def test_a_run_without_metrics_holds_none(tmp_path):
    assert list(read_metrics(tmp_path)) == []


def _write_many(folder, job):
    with MetricsLog(folder) as log:
        for step in range(300):
            log.write("s", job, step, {"text": "x" * (step * 7)})


def test_processes_that_append_at_once_do_not_mix_their_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, job)) for job in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    steps = {"a": [], "b": []}
    for record in read_metrics(tmp_path):
        steps[record["job"]].append(record["step"])
    assert steps == {"a": list(range(300)), "b": list(range(300))}


@pytest.mark.faults
def test_a_full_disk_is_an_error_and_not_a_silent_loss(tmp_path):
    # RLIMIT_FSIZE makes the kernel take only a part of the record, as a full disk does.
    code = """
import resource, signal, sys
from refbert_dist.tracking.metrics import MetricsLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, most))
log = MetricsLog(sys.argv[1])
log.write("s", "j", 1, {"loss": 1.0})
try:
    log.write("s", "j", 2, {"text": "x" * 500})
except OSError:
    sys.exit(7)
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # what runs at exit may write again
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 7
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
