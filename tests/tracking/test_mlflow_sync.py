"""One run, its metrics and its files, to stores that come, go, and are asked twice."""

import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow_stores import Server, Stored, expected, free_port, new_run, sync, wait_for_copy, write

from refbert_dist.errors import RefusedError, UserError
from refbert_dist.tracking import mlflow_sync
from refbert_dist.tracking.mlflow_sync import check_mlflow_uri
from refbert_dist.tracking.provenance import write_provenance


def test_a_run_arrives_whole_in_its_own_file(run_dir: Path, tmp_path: Path) -> None:
    write(run_dir, "refbert", range(1, 1201))
    write(run_dir, "tinybert", range(1, 11))
    copy = sync(run_dir)
    copy.start()
    assert copy.close("FINISHED") and copy.errors == 0

    store = Stored(run_dir)
    assert set(store.runs) == {"run", "run/refbert", "run/tinybert"}
    assert set(store.statuses().values()) == {"FINISHED"}
    for job in ("refbert", "tinybert"):
        assert store.points(f"run/{job}") == expected(run_dir, job)
        assert set(store.runs[f"run/{job}"].data.metrics) == {"loss"}
    assert store.runs["run/refbert"].info.start_time == expected(run_dir, "refbert")[0][2]
    run = store.runs["run"]
    assert run.data.params == {"seed": "0", "student.layers": "4", "systems": '["refbert"]', "corpus": "null"}
    assert store.artifacts("run") == {"experiment.yaml", "provenance.json"}
    assert run.info.artifact_uri.startswith((run_dir / "mlartifacts").as_uri())
    assert abs(run.info.start_time / 1000 - time.time()) < 600 and run.info.end_time >= run.info.start_time
    assert list(tmp_path.iterdir()) == [run_dir]


@pytest.mark.usefixtures("store_made")
def test_copying_again_adds_nothing_even_when_all_is_forgotten(run_dir: Path) -> None:
    write(run_dir, "refbert", range(1, 21))
    assert sync(run_dir).sync_once("FINISHED") == 20
    assert sync(run_dir).sync_once("FINISHED") == 0
    (run_dir / "mlflow.json").unlink()
    assert sync(run_dir).sync_once("FINISHED") == 20
    store = Stored(run_dir)
    assert store.points("run/refbert") == expected(run_dir, "refbert")
    assert len(store.runs) == 2


@pytest.mark.usefixtures("store_made")
def test_only_what_is_new_is_copied_and_a_line_in_the_making_waits(run_dir: Path) -> None:
    copy = sync(run_dir)
    assert copy.sync_once() == 0
    write(run_dir, "refbert", [1, 2])
    assert copy.sync_once() == 2
    write(run_dir, "refbert", [3])
    path = run_dir / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert copy.sync_once() == 0
    path.write_bytes(whole)
    assert copy.sync_once() == 1
    assert Stored(run_dir).points("run/refbert") == expected(run_dir, "refbert")


@pytest.mark.usefixtures("store_made")
def test_a_continued_run_goes_on_in_the_same_place_with_its_first_parameters(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(run_dir, "first", [1])
    write(run_dir, "second", [1])
    assert sync(run_dir).close("FAILED")
    assert Stored(run_dir).statuses() == {"run": "FAILED", "run/first": "FINISHED", "run/second": "FAILED"}

    write_provenance(run_dir)
    (run_dir / "experiment.yaml").write_text("seed: 1\nnew: 5\n")
    write(run_dir, "second", [2])
    copy = sync(run_dir)
    assert copy.sync_once("RUNNING") == 1
    assert Stored(run_dir).statuses() == {"run": "RUNNING", "run/first": "FINISHED", "run/second": "RUNNING"}
    assert copy.close("FINISHED")
    store = Stored(run_dir)
    assert set(store.statuses().values()) == {"FINISHED"}
    assert [step for step, *_ in store.points("run/second")] == [1, 2]
    assert (store.runs["run"].data.params["seed"], store.runs["run"].data.params["new"]) == ("0", "5")
    assert "keeps the first values of seed;" in caplog.text


@pytest.mark.usefixtures("store_made")
def test_copying_a_finished_run_does_not_make_it_run_again(run_dir: Path) -> None:
    write(run_dir, "refbert", [1])
    assert sync(run_dir).close("FINISHED")
    write(run_dir, "refbert", [2])
    assert sync(run_dir).sync_once() == 1
    assert Stored(run_dir).statuses() == {"run": "FINISHED", "run/refbert": "FINISHED"}


@pytest.mark.usefixtures("store_made")
def test_changed_files_are_copied_again(run_dir: Path) -> None:
    copy = sync(run_dir)
    copy.sync_once()
    for text in ("<p>one", "<p>one and two"):
        (run_dir / "report.html").write_text(text)
        copy.sync_once()
    store = Stored(run_dir)
    local = store.client.download_artifacts(store.runs["run"].info.run_id, "report.html")
    assert Path(local).read_text() == "<p>one and two"


@pytest.mark.usefixtures("store_made")
def test_runs_that_were_deleted_in_the_store_are_made_anew(run_dir: Path) -> None:
    write(run_dir, "refbert", [1, 2])
    sync(run_dir).sync_once("FINISHED")
    store = Stored(run_dir)
    for run in store.runs.values():
        store.client.delete_run(run.info.run_id)
    assert sync(run_dir).sync_once("FINISHED") == 2
    assert Stored(run_dir).points("run/refbert") == expected(run_dir, "refbert")

    store.client.delete_run(Stored(run_dir).runs["run/refbert"].info.run_id)
    write(run_dir, "refbert", [3])
    assert sync(run_dir).sync_once("FINISHED") == 1
    assert Stored(run_dir).points("run/refbert") == expected(run_dir, "refbert")[2:]


@pytest.mark.usefixtures("store_made")
def test_the_settings_of_our_client_do_not_stay_in_the_environment(run_dir: Path) -> None:
    before = dict(os.environ)
    sync(run_dir).sync_once()
    assert dict(os.environ) == before


def _first_use(run_dir: Path, uri: str) -> None:
    sync(run_dir, uri).sync_once("FINISHED")


def test_processes_that_make_one_database_and_one_run_at_once_do_not_destroy_or_double_them(
    tmp_path: Path, run_dir: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/shared/mlflow.db"
    runs = [new_run(tmp_path / f"run{number}") for number in range(2)]
    for number, folder in enumerate(runs):
        write(folder, "refbert", range(1, 3 + number))
    context = multiprocessing.get_context("spawn")
    # Two stages of one run may go on beside each other.
    starters = [context.Process(target=_first_use, args=(folder, uri)) for folder in (*runs, runs[0])]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [starter.exitcode for starter in starters] == [0, 0, 0]
    store = Stored(uri=uri)
    assert set(store.runs) == {"run0", "run0/refbert", "run1", "run1/refbert"}
    assert store.experiment.artifact_location == (tmp_path / "shared" / "mlartifacts").as_uri()


# -- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_dead_server_is_counted_said_once_and_stops_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_sync, "SYNC_INTERVAL_S", 0.1)
    write(run_dir, "refbert", [1])
    copy = sync(run_dir, f"http://127.0.0.1:{free_port()}")
    copy.start()
    deadline = time.monotonic() + 60
    while copy.errors < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert copy.errors >= 3
    assert copy.close("FINISHED") is False
    assert caplog.text.count("cannot be used now") == 1
    assert f"refbert sync {run_dir}" in caplog.text


@pytest.mark.faults
def test_closing_does_not_wait_for_a_server_that_never_answers(run_dir: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        copy = sync(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert copy.close("FINISHED", timeout_s=0.2) is False


def test_a_pass_on_request_says_that_the_server_is_dead(run_dir: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RefusedError, match=f"tracking.mlflow_uri is '{uri}', which cannot be used now"):
        sync(run_dir, uri).sync_once()


@pytest.mark.faults
@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_how_a_run_ended_out_of_reach_of_the_store_is_known_to_who_copies_it_later(
    run_dir: Path, empty_store: Path, status: mlflow_sync.Status
) -> None:
    write(run_dir, "refbert", [1])
    assert sync(run_dir, f"http://127.0.0.1:{free_port()}").close(status) is False
    (run_dir / "mlflow.db").write_bytes(empty_store.read_bytes())
    assert sync(run_dir).sync_once() == 1
    assert Stored(run_dir).statuses() == {"run": status, "run/refbert": status}
    write(run_dir, "tinybert", [1])
    assert sync(run_dir).sync_once() == 1
    assert Stored(run_dir).statuses()["run/tinybert"] == status


@pytest.mark.faults
def test_stages_of_one_run_that_copy_at_once_to_a_server_double_nothing(run_dir: Path, server: Server) -> None:
    experiment = {"uri": server.uri, "experiment": "at once"}
    sync(new_run(run_dir.with_name("another")), **experiment).sync_once()
    write(run_dir, "refbert", range(1, 11))
    with ThreadPoolExecutor() as threads:
        copied = list(threads.map(lambda _: sync(run_dir, **experiment).sync_once("RUNNING"), range(4)))
    assert sorted(copied) == [0, 0, 0, 10]
    store = Stored(uri=server.uri, experiment="at once")
    assert set(store.runs) == {"another", "run", "run/refbert"}
    assert store.points("run/refbert") == expected(run_dir, "refbert")


@pytest.mark.faults
def test_a_server_that_goes_and_comes_back_loses_nothing_and_doubles_nothing(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_sync, "SYNC_INTERVAL_S", 0.2)
    copy = sync(run_dir, server.uri, experiment="single")
    copy.start()
    write(run_dir, "refbert", range(1, 101))
    wait_for_copy(run_dir)
    server.kill()
    write(run_dir, "refbert", range(101, 151))
    seen = copy.errors
    deadline = time.monotonic() + 60
    while copy.errors == seen:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.start()
    write(run_dir, "refbert", range(151, 161))
    assert copy.close("FINISHED")
    store = Stored(uri=server.uri, experiment="single")
    assert store.points("run/refbert") == expected(run_dir, "refbert")
    assert len(store.points("run/refbert")) == 160
    assert store.statuses() == {"run": "FINISHED", "run/refbert": "FINISHED"}
    assert "experiment.yaml" in store.artifacts("run")


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("./mlruns", "no address"),
        ("file:///tmp/x", "no address"),
        ("localhost:5000", "no address"),
        ("http://", "lacks the host"),
        ("sqlite://", "lacks the file"),
        ("https://me:" + "secret@example.org", "holds a password"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_starts(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=f"tracking.mlflow_uri.*{said}") as caught:
        check_mlflow_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [None, "http://h:5000", "https://h/mlflow", "sqlite:///a.db", "sqlite:////a/b.db", "postgresql+psycopg2://h/d"],
)
def test_a_good_address_is_taken(uri: str) -> None:
    check_mlflow_uri(uri)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"provenance\.json"):
        sync(tmp_path)


def test_mlflow_is_not_imported_before_it_is_used() -> None:
    code = "import sys, refbert_dist.tracking.mlflow_sync; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
