"""Copies a run to MLflow: the only module that imports it, late, because that takes seconds.

``metrics.jsonl`` is the truth and MLflow a copy of it, brought up to date in the background by the process that drives
the stages. Nothing that happens to the server stops or delays a stage: what could not be copied is copied later, by the
next start of the run or by ``refbert sync``. Copying again adds nothing: the store keeps one point for equal run, name,
step, time and value.

In MLflow an experiment holds one parent run for each run directory, with the parameters and small files, and below it
one child run for each job, with the metrics. ``RUN_DIR/mlflow.json`` remembers run ids and how far the log was read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from refbert_dist.errors import RefusedError, UserError
from refbert_dist.tracking.files import locked, read_json_or_none, replace_json
from refbert_dist.tracking.metrics import FILE_NAME as METRICS
from refbert_dist.tracking.metrics import parse_record
from refbert_dist.tracking.provenance import run_id

Status = Literal["FINISHED", "FAILED", "KILLED"]

SYNC_INTERVAL_S = 15.0
ARTIFACTS = ("experiment.yaml", "provenance.json", "results.json", "report.html")
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
CHUNK_LINES = 500
BATCH_METRICS = 500
BATCH_PARAMS = 100
"""Most parameters that MLflow takes in one request; of metrics it takes 1000."""
ENVIRONMENT = {
    # Our own loop is the retry; inside one call, waiting and retrying would only hold up the end of the run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

logger = logging.getLogger(__name__)


def check_mlflow_uri(uri: str | None) -> None:
    """Refuse an address that cannot work, without importing MLflow or asking the server.

    Raises :class:`UserError` naming ``tracking.mlflow_uri``.
    """
    if uri is None:
        return
    parts = urlsplit(uri)
    if parts.password:
        raise UserError(
            "tracking.mlflow_uri holds a password, which every copy of the experiment file would show; take it out and "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or use the database's own password file"
        )
    kind = parts.scheme.split("+")[0]
    if kind not in SCHEMES and uri != "databricks":
        raise UserError(
            f"tracking.mlflow_uri is '{uri}', which is no address of an MLflow store; "
            "write http://HOST:PORT or sqlite:////FOLDER/mlflow.db, or null for a file in the run directory"
        )
    if (kind in ("http", "https") and not parts.hostname) or (kind == "sqlite" and len(parts.path) < 2):
        raise UserError(
            f"tracking.mlflow_uri is '{uri}', which lacks the {'file' if kind == 'sqlite' else 'host'}; "
            f"write {'sqlite:////FOLDER/mlflow.db' if kind == 'sqlite' else f'{kind}://HOST:PORT'}"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"student.layers": "4", ...}``; what is not a string is written as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


class MlflowSync:
    """Keeps the MLflow copy of one run up to date, from a daemon thread after :meth:`start`.

    Args:
        run_dir: the run, whose provenance must have been written.
        uri: tracking URI; None is ``mlflow.db`` in the run directory, with artefacts in ``mlartifacts`` beside.
        experiment: name of the MLflow experiment, made when missing.
        params: settings of the run, may be nested.
        tags: tags of the parent run.

    Raises:
        UserError: the URI cannot work.
        RefusedError: no run was started in ``run_dir``.
    """

    def __init__(
        self,
        run_dir: Path | str,
        uri: str | None,
        experiment: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        check_mlflow_uri(uri)
        self._run_dir = Path(run_dir).resolve()
        self._run_id = run_id(run_dir)
        self.uri = uri or f"sqlite:///{self._run_dir / 'mlflow.db'}"
        self.errors = 0
        self._experiment = experiment
        self._params = flatten(params)
        self._tags = dict(tags)
        self._client: Any = None
        self._state: dict[str, Any] = {}
        self._running: set[str] = set()
        self._one_at_a_time = threading.Lock()
        self._closing = threading.Event()
        self._status: Status = "FINISHED"
        self._complete = False
        self._thread = threading.Thread(target=self._run, name="mlflow-sync", daemon=True)

    # -- the thread ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Copy in the background from now on."""
        self._thread.start()

    def close(self, status: Status = "FINISHED", timeout_s: float = 60.0) -> bool:
        """Copy the rest, set the status of the runs and end the thread; True if all of that was done within the time.

        The child run whose job wrote last gets ``status`` too; the jobs before it have finished.
        """
        self._status = status
        self._closing.set()
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(timeout_s)
        if not self._complete:
            logger.warning(
                "MLflow at %s did not get everything; %s has it all; copy it later with: refbert sync %s",
                self.uri,
                METRICS,
                self._run_dir,
            )
        return self._complete

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(SYNC_INTERVAL_S)
            try:
                self.sync_once(self._status if closing else None)
                self._complete = closing
            except RefusedError as error:
                self.errors += 1
                if self.errors == 1:
                    logger.warning("%s", error)

    # -- one pass --------------------------------------------------------------------------------------------------

    def sync_once(self, status: Status | None = None) -> int:
        """Copy what is new and, with a status, mark the runs as ended so; returns the number of records copied.

        Raises :class:`RefusedError` when the store does not take them; nothing is lost then.
        """
        with self._talking():
            self._connect()
            self._copy_artifacts()
            copied = self._copy_metrics()
            if status is not None:
                self._terminate(status)
            return copied

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Around every use of MLflow: its settings for us, and one kind of error for all that it lets through."""
        with self._one_at_a_time:
            ours = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
            os.environ.update(ours)
            try:
                yield
            except Exception as error:
                # MLflow lets through errors of requests, urllib3, SQLAlchemy and the database driver.
                self._client = None
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise RefusedError(
                    f"tracking.mlflow_uri is '{self.uri}', which cannot be used now ({reason}); "
                    f"when it can, run: refbert sync {self._run_dir}"
                ) from error
            finally:
                for name in ours:
                    os.environ.pop(name, None)

    def _connect(self) -> None:
        if self._client is not None:
            return
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        database = _sqlite_file(self.uri)
        # Several processes that make the tables of one SQLite file at once leave it half made, for good.
        with locked(database) if database else contextlib.nullcontext():
            client = MlflowClient(tracking_uri=self.uri)
            experiment_id = _experiment_id(client, self._experiment, database)
        self._open_parent(client, experiment_id)
        self._client = client

    def _open_parent(self, client: Any, experiment_id: str) -> None:
        place = {"uri": self.uri, "experiment": self._experiment, "experiment_id": experiment_id}
        state = read_json_or_none(self._run_dir / "mlflow.json") or {}
        if not place.items() <= state.items() or not _exists(client, state["parent"]):
            state = {**place, "parent": None, "jobs": {}, "artifacts": {}, "offset": 0}
            state["parent"] = _find(client, experiment_id, f"tags.`refbert.run` = '{self._run_id}'")
        if state["parent"] is None:
            run = client.create_run(experiment_id, run_name=self._run_dir.name, tags={"refbert.run": self._run_id})
            state["parent"] = run.info.run_id
        self._state = state
        self._running.clear()
        self._save()
        self._mark_running(client, state["parent"])
        self._describe_parent(client)

    def _mark_running(self, client: Any, run: str) -> None:
        """A run that is continued runs again; one that is only copied does not."""
        if self._thread.ident is not None:
            client.update_run(run, status="RUNNING")

    def _describe_parent(self, client: Any) -> None:
        from mlflow.entities import Param, RunTag

        parent = self._state["parent"]
        tags = {**self._tags, "refbert.run_dir": str(self._run_dir)}
        client.log_batch(parent, tags=[RunTag(name, value) for name, value in tags.items()])
        standing = client.get_run(parent).data.params
        changed = [name for name, value in self._params.items() if standing.get(name, value) != value]
        if changed:
            logger.info("MLflow keeps the first values of %s; experiment.yaml has those of now", ", ".join(changed))
        new = [Param(name, value) for name, value in self._params.items() if name not in standing]
        for start in range(0, len(new), BATCH_PARAMS):
            client.log_batch(parent, params=new[start : start + BATCH_PARAMS])

    def _copy_artifacts(self) -> None:
        for name in ARTIFACTS:
            path = self._run_dir / name
            if path.exists() and (modified := path.stat().st_mtime_ns) != self._state["artifacts"].get(name):
                self._client.log_artifact(self._state["parent"], str(path))
                self._state["artifacts"][name] = modified
                self._save()

    def _copy_metrics(self) -> int:
        path = self._run_dir / METRICS
        if not path.exists():
            return 0
        copied = 0
        with path.open("rb") as stream:
            stream.seek(self._state["offset"] if self._state["offset"] <= path.stat().st_size else 0)
            while lines := _whole_lines(stream):
                copied += self._copy_records([record for line in lines if (record := parse_record(line))])
                self._state["offset"] = stream.tell()
                self._save()
        return copied

    def _copy_records(self, records: list[dict[str, Any]]) -> int:
        from mlflow.entities import Metric

        metrics: dict[str, list[Metric]] = defaultdict(list)
        for record in records:
            job, milliseconds = record["job"], round(record["time"] * 1000)
            metrics[job] += [
                Metric(name, value, milliseconds, record["step"])
                for name, value in record.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("time", "step")
            ]
            self._child(job, milliseconds)
            # Taken out and put in again, so that the job which wrote last comes last.
            self._state["jobs"][job] = {**self._state["jobs"].pop(job), "last_ms": milliseconds}
        for job, points in metrics.items():
            for start in range(0, len(points), BATCH_METRICS):
                self._client.log_batch(self._state["jobs"][job]["run"], metrics=points[start : start + BATCH_METRICS])
        return len(records)

    def _child(self, job: str, milliseconds: int) -> None:
        """See to it that the run of a job exists and is shown as running."""
        if job in self._running:
            return
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        parent, experiment_id = self._state["parent"], self._state["experiment_id"]
        known = self._state["jobs"].get(job, {}).get("run") or _find(
            self._client, experiment_id, f"tags.{MLFLOW_PARENT_RUN_ID} = '{parent}' and tags.`refbert.job` = '{job}'"
        )
        if known is None:
            run = self._client.create_run(
                experiment_id,
                start_time=milliseconds,
                run_name=job,
                tags={MLFLOW_PARENT_RUN_ID: parent, "refbert.job": job},
            )
            known = run.info.run_id
        else:
            self._mark_running(self._client, known)
        self._state["jobs"][job] = {"run": known, "last_ms": milliseconds}
        self._save()
        self._running.add(job)

    def _terminate(self, status: Status) -> None:
        jobs = list(self._state["jobs"].values())
        for place, item in enumerate(jobs, start=1):
            ended = status if place == len(jobs) else "FINISHED"
            self._client.set_terminated(item["run"], ended, end_time=item["last_ms"])
        self._client.set_terminated(self._state["parent"], status)

    def _save(self) -> None:
        replace_json(self._run_dir / "mlflow.json", self._state)


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.split(":///", 1)[1].split("?")[0]).resolve() if uri.startswith("sqlite") else None


def _experiment_id(client: Any, name: str, database: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # The default place of artefacts is the working directory, wherever that happens to be.
        location = (database.parent / "mlartifacts").as_uri() if database else None
        made: str = client.create_experiment(name, artifact_location=location)
        return made
    existing: str = found.experiment_id
    return existing


def _exists(client: Any, run: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _find(client: Any, experiment_id: str, condition: str) -> str | None:
    found = client.search_runs([experiment_id], condition, max_results=1)
    return found[0].info.run_id if found else None


def _whole_lines(stream: Any) -> list[bytes]:
    """The next lines; one that is not ended yet is left for later."""
    lines = list(itertools.islice(iter(stream.readline, b""), CHUNK_LINES))
    if lines and not lines[-1].endswith(b"\n"):
        stream.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines
