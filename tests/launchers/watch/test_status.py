"""``refbert status`` and ``cancel``, where SLURM is not there to ask."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_dirs import message, prepared_run, processes, start, states, submit
from tiny import tiny_experiment

from launchers.watch.run_status import status
from launchers.watch.status import show_status
from refbert_dist import pipeline
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.engine.reports import log_path, open_log, report_error
from refbert_dist.errors import StoppedError, UserError
from refbert_dist.rundir import open_run
from refbert_dist.tracking.progress import Progress, progress_path

pytestmark = pytest.mark.dist

Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture
def exp(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Experiment:
    """A run that was prepared and nothing more."""
    return prepared_run(tmp_path_factory.getbasetemp(), tmp_path / "run")


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command of SLURM can be found."""
    monkeypatch.setenv("PATH", "")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, refbert: Refbert) -> None:
    for command in ("status", "logs", "cancel"):
        code, _, err = refbert(command, tmp_path)
        assert code == 2 and "is not a run directory, because it has no experiment.yaml" in err


def test_what_was_done_is_told_from_what_was_never_begun(exp: Experiment) -> None:
    run = status(exp.run.dir)
    assert run.state == "to run" and run.note is None
    assert states(exp) == {stage.name: "to run" for stage in pipeline.STAGES if stage.wanted(exp)} | {"prepare": "done"}
    assert run.stages[0].seconds is not None


def test_stages_that_nothing_needs_any_more(exp: Experiment) -> None:
    (exp.run.dir / "export").mkdir()
    manifest = {"export": exp.export.model_dump(mode="json")}
    (exp.run.dir / "export" / "manifest.json").write_text(json.dumps(manifest))
    assert status(exp.run.dir).state == "done"
    assert states(exp)["distill-task"] == "not needed"


def test_the_experiment_decides_which_stages_there_are(exp: Experiment) -> None:
    values = exp.model_dump(mode="json") | {"task": None}
    (exp.run.dir / "experiment.yaml").write_text(to_yaml(Experiment.model_validate(values)))
    assert list(states(exp)) == ["prepare", "retrieve", "cache-general", "distill-general", "export"]


def test_a_run_is_found_from_another_folder_and_after_it_was_moved(
    exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = exp.cache.dir.parent
    shutil.copytree(root / "teacher", "teacher")
    shutil.copytree(root / "task", "task")
    named = ("run.dir=runs/a", "cache.dir=runs/cache", "teacher.model=./teacher", "task.path=./task")
    pipeline.run(tiny_experiment(root, *named, "corpus=null"), ["prepare"])
    monkeypatch.chdir("/")
    assert status(tmp_path / "runs" / "a").stages[0].state == "done"
    monkeypatch.chdir(tmp_path / "runs")
    assert status(Path("a")).stages[0].state == "done"
    Path("a").rename("b")
    monkeypatch.chdir(tmp_path)
    moved = status(Path("runs/b")).stages[0]
    assert moved.state == "done" and moved.seconds is not None


def test_a_command_at_work_is_seen_by_its_lock(exp: Experiment) -> None:
    processes(exp, "finetune", "pass", count=1)
    with open_run(exp):
        open_log(log_path(exp.run.dir, "retrieve", 0), "process 0").close()
        with Progress("retrieve-corpus", 200, "samples", run_dir=exp.run.dir) as progress:
            progress.update(84)
        run = status(exp.run.dir)
        stage = run.stages[1]
        assert (run.state, stage.state, run.stages[4].state) == ("running", "running", "stopped")
        assert stage.progress and (stage.progress["done"], stage.progress["total"]) == (84, 200)
        assert stage.shards == 0
        with pytest.raises(UserError, match="in use by another refbert command"), open_run(exp):
            pass  # Asking has not loosened the lock,
    assert status(exp.run.dir).state == "stopped"
    with open_run(exp):
        pass  # nor left one behind.


def test_the_newest_of_several_progress_files_counts(exp: Experiment) -> None:
    for name, done in (("general-refbert", 6), ("general-tinybert", 2)):
        with Progress(name, 6, "steps", run_dir=exp.run.dir) as progress:
            progress.update(done)
    old = json.loads(progress_path(exp.run.dir, "general-tinybert").read_text())
    processes(exp, "distill-general", "raise ValueError('no')")
    (stage,) = (stage for stage in status(exp.run.dir).stages if stage.name == "distill-general")
    assert stage.progress and (stage.progress["name"], stage.progress["done"]) == ("general-tinybert", 2)
    old["time"] -= 3600
    progress_path(exp.run.dir, "general-tinybert").write_text(json.dumps(old))
    (stage,) = (stage for stage in status(exp.run.dir).stages if stage.name == "distill-general")
    assert stage.progress and stage.progress["name"] == "general-refbert"


def test_a_failure_is_told_in_the_processes_own_words(exp: Experiment) -> None:
    processes(exp, "retrieve", "raise ValueError('no such thing')")
    assert states(exp)["retrieve"] == "failed" and status(exp.run.dir).state == "failed"
    assert "ValueError: no such thing" in message(exp, "retrieve")
    report_error(exp.run.dir, "retrieve", 1, UserError("task.path is 'x', which is not there; set task.path"))
    assert message(exp, "retrieve") == "task.path is 'x', which is not there; set task.path"


def test_a_run_that_was_told_to_stop_has_not_failed(exp: Experiment) -> None:
    processes(exp, "retrieve", "pass")
    report_error(exp.run.dir, "retrieve", 0, StoppedError("stopped by SIGTERM; run the same command again"))
    assert states(exp)["retrieve"] == "stopped" and status(exp.run.dir).state == "stopped"


def test_the_process_that_crashed_is_named_before_those_that_missed_it(exp: Experiment) -> None:
    code = """
import os, signal, time
if os.environ['RANK'] == '0':
    time.sleep(0.5)
    raise RuntimeError('Connection closed by peer [127.0.0.1]:6')
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1)
raise KeyError('the cause')
"""
    processes(exp, "retrieve", code)
    assert message(exp, "retrieve") == "process 1: KeyError: 'the cause'"


def test_a_kill_leaves_no_words(exp: Experiment) -> None:
    processes(exp, "retrieve", "import os; os.kill(os.getpid(), 9)", count=1)
    assert states(exp)["retrieve"] == "stopped"
    assert "ended without a word" in message(exp, "retrieve")


def test_only_the_newest_start_in_a_log_counts(exp: Experiment) -> None:
    processes(exp, "retrieve", "raise ValueError('of the first start')", count=1)
    processes(exp, "retrieve", "raise ValueError('of the second')", count=1)
    assert "of the second" in message(exp, "retrieve")
    processes(exp, "retrieve", "import os; os.kill(os.getpid(), 9)", count=1)
    assert "ended without a word" in message(exp, "retrieve")


def test_a_result_that_was_deleted_is_to_be_made_again(exp: Experiment, tmp_path: Path) -> None:
    processes(exp, "prepare", "pass")
    moved = exp.model_copy(update={"cache": exp.cache.model_copy(update={"dir": tmp_path / "empty"})})
    (exp.run.dir / "experiment.yaml").write_text(to_yaml(moved))
    assert not tokens_artifact(moved, "corpus").complete
    assert states(exp)["prepare"] == "to run"


# -- jobs, and no SLURM to ask -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_slurm")
def test_where_slurm_is_not_the_jobs_notes_are_believed(exp: Experiment) -> None:
    for number, stage in enumerate(("retrieve", "cache-general", "distill-general", "finetune", "cache-task")):
        submit(exp, stage, str(number))
    start(exp, "1")
    start(exp, "2", code=StoppedError.exit_code)
    start(exp, "3", code=9)
    start(exp, "4")
    processes(exp, "cache-task", "pass")
    report_error(exp.run.dir, "cache-task", 0, UserError("the disk is full; make room"))
    found = states(exp)
    assert [found[name] for name in ("retrieve", "cache-general", "distill-general", "finetune", "cache-task")] == [
        "pending",
        "running",
        "stopped",
        "failed",
        "failed",
    ]
    assert message(exp, "cache-task") == "the disk is full; make room"
    run = status(exp.run.dir)
    assert run.note and "SLURM does not answer: squeue is not on this machine" in run.note
    assert run.stages[2].to_json()["jobs"] == [
        {"id": "1", "state": "UNKNOWN", "reason": None, "node": "n3", "elapsed_s": None, "restarts": 0}
    ]


# -- what a person sees ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("width", ["80", "160"])
def test_the_table_has_a_line_for_each_stage(
    exp: Experiment, refbert: Refbert, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    submit(exp, "retrieve", "13808858", elements=8)
    for element in range(3):
        start(exp, f"13808858_{element}")
    with Progress("retrieve-corpus", 200, "samples", run_dir=exp.run.dir) as progress:
        progress.update(84)
    submit(exp, "cache-general", "13808859", after=("retrieve",))
    processes(exp, "finetune", "raise ValueError('no')", count=1)
    code, out, err = refbert("status", exp.run.dir)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] != []}
    assert all(len(lines[name]) <= int(width) for name in states(exp))
    assert "3 of 8 running" in lines["retrieve"] and "13808858" in lines["retrieve"]
    assert "42 %" in lines["retrieve"] and ("n3" in lines["retrieve"]) is (width == "160")
    assert "finetune: process 0: ValueError: no" in out
    assert f"to go on: refbert resume {exp.run.dir}" in out


def test_json_has_the_same_keys_for_every_stage(exp: Experiment, refbert: Refbert) -> None:
    processes(exp, "retrieve", "raise ValueError('no')")
    code, out, _ = refbert("status", exp.run.dir, "--json")
    found = json.loads(out)
    assert code == 0 and found["run_dir"] == str(exp.run.dir) and found["state"] == "failed"
    keys = {"name", "title", "state", "message", "jobs", "progress", "shards", "seconds"}
    assert [set(stage) for stage in found["stages"]] == [keys] * (len(pipeline.STAGES) - 4), (
        "all but augment, search, benchmark and submission"
    )


def test_nothing_to_cancel_is_said(exp: Experiment, refbert: Refbert) -> None:
    code, out, _ = refbert("cancel", exp.run.dir)
    assert code == 0 and "nothing to cancel" in out


def test_a_console_that_is_no_terminal_gets_plain_text(exp: Experiment, tmp_path: Path) -> None:
    from rich.console import Console

    with (tmp_path / "out").open("w") as stream:
        show_status(exp.run.dir, as_json=False, console=Console(file=stream))
    assert "\x1b" not in (tmp_path / "out").read_text()
