"""One experiment to a directory, one command at a time."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist.artifacts import read_json
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.errors import UserError
from refbert_dist.rundir import EXPERIMENT, TABLE, check_same_experiment, open_run, record_stage, take_on


@pytest.fixture
def exp(tmp_path: Path) -> Experiment:
    return tiny_experiment(tmp_path)


def test_a_run_takes_on_further_systems_and_nothing_else(tmp_path: Path) -> None:
    few, many = tiny_experiment(tmp_path, "systems=[refbert]"), tiny_experiment(tmp_path)
    take_on(few)
    assert not few.run.dir.exists()
    with open_run(few):
        pass
    with pytest.raises(UserError, match="another experiment: seed is 1 there and 2 here"):
        take_on(tiny_experiment(tmp_path, "seed=2"))
    take_on(many)
    with open_run(many):
        assert load_experiment(many.run.dir / EXPERIMENT).systems == ("refbert", "tinybert")


def test_the_directory_of_a_table_is_not_that_of_a_run(exp: Experiment) -> None:
    exp.run.dir.mkdir()
    (exp.run.dir / TABLE).touch()
    with pytest.raises(UserError, match="holds a table"), open_run(exp):
        pass


def test_it_holds_the_resolved_experiment_and_where_it_came_from(exp: Experiment) -> None:
    with open_run(exp) as folder:
        assert folder == exp.run.dir
        assert load_experiment(folder / "experiment.yaml") == exp
        assert "python" in (folder / "provenance.json").read_text()


@pytest.mark.parametrize(
    "override",
    [
        "launch.processes=4",
        "launch.threads=1",
        "cache.dir=/elsewhere",
        "cache.layers=all",
        "cache.shard_tokens=77",
        "tracking.mlflow=true",
        "tracking.log_steps=3",
        "engine.zero_stage=1",
        "engine.precision=bf16",
        "engine.timeout_s=5",
        "engine.checkpoint_steps=1",
        "engine.keep_checkpoints=1",
    ],
)
def test_settings_that_change_no_result_may_change(exp: Experiment, tmp_path: Path, override: str) -> None:
    with open_run(exp):
        pass
    changed = tiny_experiment(tmp_path, override)
    assert changed != exp
    with open_run(changed):
        assert load_experiment(exp.run.dir / "experiment.yaml") == changed, "what runs now is what is written"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=2", "seed is 1 there and 2 here"),
        ("student.layers=3", r"student\.layers is 2 there and 3 here"),
        ("engine.micro_batch_size=8", r"engine\.micro_batch_size is 4 there and 8 here"),
        ("engine.gradient_clipping=0", r"engine\.gradient_clipping is 1\.0 there and 0\.0 here"),
        ("distill.weights.hidden=2", r"distill\.weights\.hidden is 1\.0 there and 2\.0 here"),
        ("distill.targets=online", r"distill\.targets is 'cache' there and 'online' here"),
        ("references.count=1", r"references\.count is 2 there and 1 here"),
        ("task=null", "task is {.*} there and None here"),
        ("systems=[tinybert]", r"systems is \['refbert', 'tinybert'\] there and \['tinybert'\] here"),
    ],
)
def test_settings_that_change_results_may_not(exp: Experiment, tmp_path: Path, override: str, words: str) -> None:
    with open_run(exp):
        pass
    before = (exp.run.dir / "experiment.yaml").read_bytes()
    with (
        pytest.raises(UserError, match=rf"holds another experiment: {words}; choose another run\.dir"),
        open_run(tiny_experiment(tmp_path, override)),
    ):
        pass
    assert (exp.run.dir / "experiment.yaml").read_bytes() == before


def test_what_another_version_wrote_is_told_from_what_the_user_wrote(exp: Experiment) -> None:
    with open_run(exp):
        pass
    path = exp.run.dir / EXPERIMENT
    path.write_text(path.read_text().replace("student:\n", "student:\n  wings: 2\n", 1))
    message = (
        r"experiment\.yaml cannot be read by this version of refbert; use the one .* run\.dir: student\.wings is not"
    )
    with pytest.raises(UserError, match=message):
        check_same_experiment(exp)


def test_an_empty_or_missing_directory_is_nobodys(exp: Experiment) -> None:
    check_same_experiment(exp)
    exp.run.dir.mkdir()
    check_same_experiment(exp)
    with open_run(exp):
        pass


def test_a_file_in_its_place_is_refused(exp: Experiment) -> None:
    exp.run.dir.write_text("not a folder")
    with pytest.raises(UserError, match=r"run\.dir is '.*', which is a file"), open_run(exp):
        pass
    assert exp.run.dir.read_text() == "not a folder"


def test_a_second_command_is_refused_until_the_first_has_ended(exp: Experiment) -> None:
    with open_run(exp):
        with pytest.raises(UserError, match="in use by another refbert command"), open_run(exp):
            pass
        # The refused one must not have freed the lock of the first.
        with pytest.raises(UserError, match="in use by another refbert command"), open_run(exp):
            pass
    with pytest.raises(ZeroDivisionError), open_run(exp):
        _ = 1 // 0
    with open_run(exp):
        pass


def hold(exp: Experiment, ready: Connection) -> None:
    with open_run(exp):
        ready.send("held")
        signal.pause()


@pytest.mark.dist
@pytest.mark.faults
def test_a_killed_command_leaves_no_lock(exp: Experiment) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(exp, there))
    process.start()
    try:
        assert here.poll(60) and here.recv() == "held"
        with pytest.raises(UserError, match="in use"), open_run(exp):
            pass
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with open_run(exp):
        pass


def test_a_finished_stage_is_noted(exp: Experiment) -> None:
    record_stage(exp.run.dir, "prepare", 1.234, 2, {"samples": 5})
    record = read_json(exp.run.dir / "stages" / "prepare.json")
    assert record.pop("finished_at")
    assert record == {"stage": "prepare", "seconds": 1.2, "processes": 2, "result": {"samples": 5}}
