"""Where MLflow's tests take their runs and stores from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_stores import Server, new_run


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Nothing may be left in the working directory, and no proxy may stand between the test and its own server.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return new_run(tmp_path / "run")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_made(run_dir: Path, empty_store: Path) -> None:
    """Making the tables takes seconds, so most tests start with a copy of an empty store."""
    shutil.copy(empty_store, run_dir / "mlflow.db")


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Running; starting it takes seconds, so all tests share it, each with an experiment of its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if _server.process is None or _server.process.poll() is not None:
        _server.start()
    return _server
