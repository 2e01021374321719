"""Run directories to be copied to MLflow, real stores, and what reads them back."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refbert_dist.config.schema import TrackingConfig
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.metrics import MetricsLog
from refbert_dist.tracking.mlflow_sync import MlflowSync
from refbert_dist.tracking.provenance import write_provenance


def new_run(folder: Path) -> Path:
    write_provenance(folder)
    (folder / "experiment.yaml").write_text("seed: 0\nstudent: {layers: 4}\nsystems: [refbert]\ncorpus: null\n")
    return folder


def sync(run_dir: Path, uri: str | None = None, **settings: Any) -> MlflowSync:
    return MlflowSync(run_dir, TrackingConfig(mlflow_uri=uri, **settings))


def write(run_dir: Path, job: str, steps: Iterable[int]) -> None:
    with MetricsLog(run_dir) as log:
        for step in steps:
            log.write("distill", job, step, {"loss": 1.0 / step, "note": "text", "done": True, "broken": float("nan")})


class Stored:
    """Reads back what lies in a store; runs by their path of names, such as ``run/0001/refbert``."""

    def __init__(self, run_dir: Path | None = None, uri: str | None = None, experiment: str = "refbert") -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri or f"sqlite:///{run_dir}/mlflow.db")
        self.experiment = self.client.get_experiment_by_name(experiment)
        assert self.experiment is not None
        found = list(self.client.search_runs([self.experiment.experiment_id], max_results=1000))
        by_id = {run.info.run_id: run for run in found}

        def path(run: Any) -> str:
            above = run.data.tags.get("mlflow.parentRunId")
            return (f"{path(by_id[above])}/" if above else "") + run.info.run_name

        self.runs = {path(run): run for run in found}
        assert len(self.runs) == len(found)

    def points(self, run: str, name: str = "loss") -> list[tuple[int, float, int]]:
        history = self.client.get_metric_history(self.runs[run].info.run_id, name)
        return sorted((point.step, point.value, point.timestamp) for point in history)

    def statuses(self) -> dict[str, str]:
        return {path: run.info.status for path, run in self.runs.items()}

    def artifacts(self, run: str) -> set[str]:
        return {item.path for item in self.client.list_artifacts(self.runs[run].info.run_id)}


def expected(run_dir: Path, job: str) -> list[tuple[int, float, int]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(item["step"], item["loss"], round(item["time"] * 1000)) for item in records if item["job"] == job]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A real ``mlflow server`` that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/s.db"]
        store += ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *store],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            running = self.process.poll() is None and time.monotonic() < deadline
            assert running, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def wait_for_copy(*run_dirs: Path) -> None:
    """Until all that their logs hold has been copied."""
    deadline = time.monotonic() + 60
    waiting = list(run_dirs)
    while waiting:
        assert time.monotonic() < deadline, f"{waiting} was not copied"
        waiting = [run_dir for run_dir in waiting if _copied(run_dir) < (run_dir / "metrics.jsonl").stat().st_size]
        time.sleep(0.05)


def _copied(run_dir: Path) -> int:
    state = read_json_or_none(run_dir / "mlflow.json") or {"offsets": {}}
    return int(state["offsets"].get("metrics.jsonl", 0))
