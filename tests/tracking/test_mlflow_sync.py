import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from refbert_dist.errors import RefusedError, UserError
from refbert_dist.tracking import mlflow_sync
from refbert_dist.tracking.metrics import MetricsLog
from refbert_dist.tracking.mlflow_sync import MlflowSync, check_mlflow_uri, flatten
from refbert_dist.tracking.provenance import write_provenance

PARAMS = {"seed": 0, "student": {"layers": 4, "hidden": 312}, "systems": ["refbert"], "corpus": None}


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    # Nothing may be left in the working directory, and no proxy may stand between the test and its own server.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run_dir = tmp_path / "run"
    write_provenance(run_dir)
    (run_dir / "experiment.yaml").write_text("seed: 0\n")
    return run_dir


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_made(run_dir, empty_store):
    """Making the tables takes seconds, so most tests start with a copy of an empty store."""
    shutil.copy(empty_store, run_dir / "mlflow.db")


def sync(run_dir, uri=None, params=PARAMS):
    return MlflowSync(run_dir, uri, "refbert", params, {"task": "MRPC"})


def write(run_dir, job, steps):
    with MetricsLog(run_dir) as log:
        for step in steps:
            log.write("distill", job, step, {"loss": 1.0 / step, "note": "text", "done": True, "broken": float("nan")})


class Store:
    """Reads back what lies in a store."""

    def __init__(self, uri):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name("refbert")
        runs = self.client.search_runs([experiment.experiment_id])
        (self.parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
        assert len(runs) == 1 + len(self.children)

    def points(self, job, name="loss"):
        history = self.client.get_metric_history(self.children[job].info.run_id, name)
        return sorted((point.step, point.value, point.timestamp) for point in history)


def expected(run_dir, job):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(item["step"], item["loss"], round(item["time"] * 1000)) for item in records if item["job"] == job]


def test_a_run_arrives_whole_in_its_own_file(run_dir, tmp_path):
    write(run_dir, "refbert", range(1, 1201))
    write(run_dir, "tinybert", range(1, 11))
    copy = sync(run_dir)
    copy.start()
    assert copy.close("FINISHED") and copy.errors == 0

    store = Store(f"sqlite:///{run_dir}/mlflow.db")
    assert store.points("refbert") == expected(run_dir, "refbert")
    assert store.points("tinybert") == expected(run_dir, "tinybert")
    for child in store.children.values():
        assert child.data.tags["mlflow.parentRunId"] == store.parent.info.run_id
        assert set(child.data.metrics) == {"loss"}
        assert child.info.status == "FINISHED"
    assert store.children["refbert"].info.start_time == expected(run_dir, "refbert")[0][2]
    assert store.parent.info.run_name == "run" and store.parent.info.status == "FINISHED"
    assert store.parent.data.params == {
        "seed": "0",
        "student.layers": "4",
        "student.hidden": "312",
        "systems": '["refbert"]',
        "corpus": "null",
    }
    assert store.parent.data.tags["task"] == "MRPC"
    files = {item.path for item in store.client.list_artifacts(store.parent.info.run_id)}
    assert files == {"experiment.yaml", "provenance.json"}
    assert store.parent.info.artifact_uri.startswith((run_dir / "mlartifacts").as_uri())
    assert list(tmp_path.iterdir()) == [run_dir]


@pytest.mark.usefixtures("store_made")
def test_copying_again_adds_nothing_even_when_all_is_forgotten(run_dir):
    write(run_dir, "refbert", range(1, 21))
    assert sync(run_dir).sync_once("FINISHED") == 20
    assert sync(run_dir).sync_once("FINISHED") == 0
    (run_dir / "mlflow.json").unlink()
    assert sync(run_dir).sync_once("FINISHED") == 20
    assert Store(f"sqlite:///{run_dir}/mlflow.db").points("refbert") == expected(run_dir, "refbert")


@pytest.mark.usefixtures("store_made")
def test_only_what_is_new_is_copied_and_a_line_in_the_making_waits(run_dir):
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
    assert Store(copy.uri).points("refbert") == expected(run_dir, "refbert")


@pytest.mark.usefixtures("store_made")
def test_a_continued_run_goes_on_in_the_same_place_with_its_first_parameters(run_dir, caplog):
    caplog.set_level(logging.INFO)
    write(run_dir, "first", [1])
    write(run_dir, "second", [1])
    assert sync(run_dir).close("FAILED")
    store = Store(f"sqlite:///{run_dir}/mlflow.db")
    assert store.parent.info.status == "FAILED"
    assert {name: run.info.status for name, run in store.children.items()} == {"first": "FINISHED", "second": "FAILED"}

    write_provenance(run_dir)
    write(run_dir, "second", [2])
    assert sync(run_dir, params=PARAMS | {"seed": 1, "new": 5}).close("FINISHED")
    store = Store(f"sqlite:///{run_dir}/mlflow.db")
    assert {run.info.status for run in (store.parent, *store.children.values())} == {"FINISHED"}
    assert [step for step, *_ in store.points("second")] == [1, 2]
    assert (store.parent.data.params["seed"], store.parent.data.params["new"]) == ("0", "5")
    assert "keeps the first values of seed" in caplog.text


@pytest.mark.usefixtures("store_made")
def test_copying_a_finished_run_does_not_make_it_run_again(run_dir):
    write(run_dir, "refbert", [1])
    assert sync(run_dir).close("FINISHED")
    sync(run_dir).sync_once()
    store = Store(f"sqlite:///{run_dir}/mlflow.db")
    assert (store.parent.info.status, store.children["refbert"].info.status) == ("FINISHED", "FINISHED")


@pytest.mark.usefixtures("store_made")
def test_changed_files_are_copied_again(run_dir):
    copy = sync(run_dir)
    copy.sync_once()
    (run_dir / "results.json").write_text("[1]")
    copy.sync_once()
    (run_dir / "results.json").write_text("[1, 2]")
    copy.sync_once()
    store = Store(copy.uri)
    local = store.client.download_artifacts(store.parent.info.run_id, "results.json")
    assert json.loads(Path(local).read_text()) == [1, 2]


@pytest.mark.usefixtures("store_made")
def test_a_run_that_was_deleted_in_the_store_is_copied_anew(run_dir):
    write(run_dir, "refbert", [1, 2])
    sync(run_dir).sync_once("FINISHED")
    store = Store(f"sqlite:///{run_dir}/mlflow.db")
    for run in (store.parent, store.children["refbert"]):
        store.client.delete_run(run.info.run_id)
    assert sync(run_dir).sync_once("FINISHED") == 2
    assert Store(store.client.tracking_uri).points("refbert") == expected(run_dir, "refbert")


@pytest.mark.usefixtures("store_made")
def test_the_settings_of_our_client_do_not_stay_in_the_environment(run_dir):
    before = dict(os.environ)
    sync(run_dir).sync_once()
    assert dict(os.environ) == before


def _first_use(run_dir, uri):
    sync(run_dir, uri).sync_once("FINISHED")


def test_processes_that_make_one_database_at_once_do_not_destroy_it(tmp_path, run_dir):
    uri = f"sqlite:///{tmp_path}/shared/mlflow.db"
    runs = [tmp_path / f"run{number}" for number in range(2)]
    for number, folder in enumerate(runs):
        write_provenance(folder)
        write(folder, "refbert", range(1, 3 + number))
    context = multiprocessing.get_context("spawn")
    starters = [context.Process(target=_first_use, args=(folder, uri)) for folder in runs]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [starter.exitcode for starter in starters] == [0, 0]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("refbert")
    assert len(client.search_runs([experiment.experiment_id])) == 4
    assert experiment.artifact_location == (tmp_path / "shared" / "mlartifacts").as_uri()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.faults
def test_a_dead_server_is_counted_said_once_and_stops_nothing(run_dir, monkeypatch, caplog):
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
def test_closing_does_not_wait_for_a_server_that_never_answers(run_dir):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        copy = sync(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert copy.close("FINISHED", timeout_s=0.2) is False


def test_a_pass_on_request_says_that_the_server_is_dead(run_dir):
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RefusedError, match=f"tracking.mlflow_uri is '{uri}', which cannot be used now"):
        sync(run_dir, uri).sync_once()


@contextlib.contextmanager
def server(folder, port):
    with (folder / "server.log").open("ab") as log:
        command = ["-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
        store = ["--backend-store-uri", f"sqlite:///{folder}/s.db", "--artifacts-destination", str(folder / "files")]
        process = subprocess.Popen(
            [sys.executable, *command, *store],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.faults
def test_a_server_that_goes_and_comes_back_loses_nothing_and_doubles_nothing(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_sync, "SYNC_INTERVAL_S", 0.2)
    place = tmp_path / "server"
    place.mkdir()
    port = free_port()
    copy = None
    with server(place, port) as uri:
        copy = sync(run_dir, uri)
        copy.start()
        write(run_dir, "refbert", range(1, 101))
        wait_for_offset(run_dir)
    write(run_dir, "refbert", range(101, 151))
    seen = copy.errors
    deadline = time.monotonic() + 60
    while copy.errors == seen:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with server(place, port) as uri:
        write(run_dir, "refbert", range(151, 161))
        assert copy.close("FINISHED")
        store = Store(uri)
        assert store.points("refbert") == expected(run_dir, "refbert")
        assert len(store.points("refbert")) == 160
        assert store.parent.info.status == "FINISHED"
        files = {item.path for item in store.client.list_artifacts(store.parent.info.run_id)}
        assert "experiment.yaml" in files


def wait_for_offset(run_dir):
    deadline = time.monotonic() + 60
    size = (run_dir / "metrics.jsonl").stat().st_size
    while True:
        with contextlib.suppress(FileNotFoundError):
            if json.loads((run_dir / "mlflow.json").read_text())["offset"] == size:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
def test_a_wrong_address_is_refused_before_anything_starts(uri, said):
    with pytest.raises(UserError, match=f"tracking.mlflow_uri.*{said}") as caught:
        check_mlflow_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [None, "http://h:5000", "https://h/mlflow", "sqlite:///a.db", "sqlite:////a/b.db", "postgresql+psycopg2://h/d"],
)
def test_a_good_address_is_taken(uri):
    check_mlflow_uri(uri)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"provenance\.json"):
        sync(tmp_path)


def test_nested_settings_become_dotted_names():
    assert flatten({"a": {"b": {"c": 1}}, "d": "x", "e": (1, 2), "f": True}) == {
        "a.b.c": "1",
        "d": "x",
        "e": "[1, 2]",
        "f": "true",
    }


def test_mlflow_is_not_imported_before_it_is_used():
    code = "import sys, refbert_dist.tracking.mlflow_sync; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
