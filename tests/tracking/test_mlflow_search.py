"""A search: its trials are run directories, and runs below its own run."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from mlflow_stores import Server, Stored, expected, new_run, sync, wait_for_copy, write

from refbert_dist.tracking import mlflow_sync
from refbert_dist.tracking.provenance import write_provenance


def new_trial(run_dir: Path, number: int, state: str, layers: int = 2) -> Path:
    trial = new_run(run_dir / "trials" / f"{number:04d}")
    (trial / "experiment.yaml").write_text(f"student: {{layers: {layers}}}\n")
    (trial / "trial.json").write_text(json.dumps({"number": number, "state": state}))
    return trial


@pytest.mark.usefixtures("store_made")
def test_trials_lie_below_the_search_and_their_jobs_below_them(run_dir: Path) -> None:
    (run_dir / "search.yaml").write_text("look: {trials: 2}\n")
    write(run_dir, "general-refbert", [1])
    trials = [new_trial(run_dir, number, "running", layers=number) for number in (1, 2)]
    (run_dir / "trials" / "0003").mkdir()  # chosen, and not started yet
    for trial in trials:
        write(trial, "general-refbert", range(1, 4))
        write(trial, "prediction-refbert", range(1, 3))
    assert sync(run_dir).sync_once("RUNNING") == 1 + 2 * 5

    store = Stored(run_dir)
    jobs = {f"run/{trial.name}/{job}" for trial in trials for job in ("general-refbert", "prediction-refbert")}
    assert set(store.runs) == {"run", "run/general-refbert", "run/0001", "run/0002"} | jobs
    assert set(store.statuses().values()) == {"RUNNING"}
    for number, trial in enumerate(trials, start=1):
        run = store.runs[f"run/{trial.name}"]
        assert run.data.params == {"student.layers": str(number)}
        assert run.data.tags["refbert.run_dir"] == str(trial)
        assert store.artifacts(f"run/{trial.name}") == {"experiment.yaml", "provenance.json", "trial.json"}
        for job in ("general-refbert", "prediction-refbert"):
            assert store.points(f"run/{trial.name}/{job}") == expected(trial, job)
    assert store.runs["run"].data.params == {"look.trials": "2"}


@pytest.mark.usefixtures("store_made")
@pytest.mark.parametrize("end", ["KILLED", "FAILED"])
def test_a_trial_is_shown_as_its_record_says_and_as_killed_when_its_search_ends_first(
    run_dir: Path, end: mlflow_sync.Status
) -> None:
    states = {"waiting": "RUNNING", "running": "RUNNING", "finished": "FINISHED", "stopped": "FINISHED"}
    states["failed"] = "FAILED"
    trials = {state: new_trial(run_dir, number, state) for number, state in enumerate(states, start=1)}
    for trial in trials.values():
        write(trial, "first", [1])
        write(trial, "last", [2])
    copy = sync(run_dir)
    copy.sync_once("RUNNING")
    shown = Stored(run_dir).statuses()
    for state, status in states.items():
        path = f"run/{trials[state].name}"
        jobs = ("RUNNING", "RUNNING") if status == "RUNNING" else ("FINISHED", status)
        assert (shown[path], shown[f"{path}/first"], shown[f"{path}/last"]) == (status, *jobs)

    assert copy.close(end)
    shown = Stored(run_dir).statuses()
    ended = {state: "KILLED" if status == "RUNNING" else status for state, status in states.items()}
    assert {state: shown[f"run/{trial.name}"] for state, trial in trials.items()} == ended
    assert (shown["run"], shown["run/0002/last"]) == (end, "KILLED")

    # The search is started again, and with it what was cut off.
    (trials["running"] / "trial.json").write_text('{"state": "finished"}')
    assert sync(run_dir).close("FINISHED")
    assert Stored(run_dir).statuses()["run/0002/last"] == "FINISHED"


@pytest.mark.usefixtures("store_made")
def test_nothing_is_sent_for_what_has_not_changed(run_dir: Path) -> None:
    trials = [new_trial(run_dir, number, "finished") for number in (1, 2, 3)]
    for trial in trials:
        write(trial, "refbert", range(1, 11))
    copy = sync(run_dir)
    assert copy.sync_once("RUNNING") == 30
    before = (run_dir / "mlflow.db").read_bytes()
    written = [(trial / "mlflow.json").stat().st_mtime_ns for trial in trials]
    assert copy.sync_once("RUNNING") == 0
    assert sync(run_dir).sync_once("RUNNING") == 0
    assert (run_dir / "mlflow.db").read_bytes() == before
    assert [(trial / "mlflow.json").stat().st_mtime_ns for trial in trials] == written

    write(trials[1], "refbert", [11])
    assert copy.sync_once("RUNNING") == 1
    assert (run_dir / "mlflow.db").read_bytes() != before


@pytest.mark.usefixtures("store_made")
def test_copying_again_adds_nothing_even_when_all_is_forgotten(run_dir: Path) -> None:
    trials = [new_trial(run_dir, number, "finished") for number in (1, 2)]
    for trial in trials:
        write(trial, "refbert", range(1, 6))
    sync(run_dir).sync_once("FINISHED")
    before = set(Stored(run_dir).runs)
    for folder in (run_dir, *trials):
        (folder / "mlflow.json").unlink()
    assert sync(run_dir).sync_once("FINISHED") == 10
    store = Stored(run_dir)
    assert set(store.runs) == before == {"run", "run/0001", "run/0001/refbert", "run/0002", "run/0002/refbert"}
    assert all(store.points(f"run/{trial.name}/refbert") == expected(trial, "refbert") for trial in trials)


@pytest.mark.usefixtures("store_made")
def test_trials_of_a_search_that_was_deleted_in_the_store_come_below_its_new_run(run_dir: Path) -> None:
    trial = new_trial(run_dir, 1, "finished")
    write(trial, "refbert", [1])
    sync(run_dir).sync_once("FINISHED")
    store = Stored(run_dir)
    store.client.delete_run(store.runs["run"].info.run_id)
    sync(run_dir).sync_once("FINISHED")
    store = Stored(run_dir)
    assert set(store.runs) == {"run", "run/0001", "run/0001/refbert"}
    assert store.points("run/0001/refbert") == expected(trial, "refbert")


def _drive(run_dir: Path, uri: str) -> None:
    mlflow_sync.SYNC_INTERVAL_S = 0.2
    sync(run_dir, uri, experiment="search").start()
    time.sleep(3600)


@pytest.mark.faults
def test_neither_a_killed_driver_nor_a_server_that_goes_and_comes_back_loses_or_doubles_anything(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_sync, "SYNC_INTERVAL_S", 0.2)
    trials = [new_trial(run_dir, number, "running") for number in (1, 2)]
    for trial in trials:
        write(trial, "refbert", range(1, 51))
    driver = multiprocessing.get_context("spawn").Process(target=_drive, args=(run_dir, server.uri))
    driver.start()
    wait_for_copy(*trials)
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert set(Stored(uri=server.uri, experiment="search").statuses().values()) == {"RUNNING"}

    # The search and one of its trials are started again; a third trial begins while the server is away.
    for folder in (run_dir, trials[0]):
        write_provenance(folder)
    copy = sync(run_dir, server.uri, experiment="search")
    copy.start()
    write(trials[0], "refbert", range(51, 61))
    wait_for_copy(*trials)
    server.kill()
    trials.append(new_trial(run_dir, 3, "running"))
    for trial in trials:
        write(trial, "refbert", range(61, 71))
    seen = copy.errors
    deadline = time.monotonic() + 60
    while copy.errors == seen:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.start()
    for trial in trials[:2]:
        (trial / "trial.json").write_text('{"state": "finished"}')
    assert copy.close("KILLED")

    store = Stored(uri=server.uri, experiment="search")
    names = [f"run/{trial.name}" for trial in trials]
    assert set(store.runs) == {"run", *names, *(f"{name}/refbert" for name in names)}
    assert [len(store.points(f"{name}/refbert")) for name in names] == [70, 60, 10]
    for name, trial in zip(names, trials, strict=True):
        assert store.points(f"{name}/refbert") == expected(trial, "refbert")
    statuses = store.statuses()
    assert [statuses[name] for name in ("run", *names)] == ["KILLED", "FINISHED", "FINISHED", "KILLED"]
