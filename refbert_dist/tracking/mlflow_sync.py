"""When a run is copied to MLflow, and what happens when that fails.

The files of the run directory are the truth and MLflow holds a copy, brought up to date in the background by the
process that drives the stages. Nothing that happens to the server stops or delays a stage: what could not be copied is
copied later, by the next start of the run or by ``refbert sync``. Copying again adds nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from refbert_dist.config.schema import TrackingConfig
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.tracking.files import locked
from refbert_dist.tracking.metrics import FILE_NAME as METRICS
from refbert_dist.tracking.mlflow_run import FILE_NAME as STATE
from refbert_dist.tracking.mlflow_run import RunCopy, Tags, noted
from refbert_dist.tracking.mlflow_store import Status, Store, sqlite_file
from refbert_dist.tracking.provenance import run_id

SYNC_INTERVAL_S = 15.0
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
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


class MlflowSync:
    """Keeps the MLflow copy of one run, or of a search and its trials, up to date: from a thread after :meth:`start`.

    Args:
        run_dir: the run, whose provenance must have been written.
        settings: where to; without a URI ``mlflow.db`` in the run directory, with artifacts in ``mlartifacts`` beside.
        tags: more tags of a run directory, its own or a trial's; asked again when a stage has ended.

    Raises:
        UserError: the URI cannot work.
        RefusedError: no run was started in ``run_dir``.
    """

    def __init__(self, run_dir: Path | str, settings: TrackingConfig, tags: Tags = lambda run_dir: {}) -> None:
        check_mlflow_uri(settings.mlflow_uri)
        run_id(run_dir)
        self._run_dir = Path(run_dir).resolve()
        self._settings = settings
        self._tags = tags
        self.uri = settings.mlflow_uri or f"sqlite:///{self._run_dir / 'mlflow.db'}"
        self.errors = 0
        self._store: Store | None = None
        self._one_at_a_time = threading.Lock()
        self._closing = threading.Event()
        self._status: Status = "FINISHED"
        self._complete = False
        self._thread = threading.Thread(target=self._run, name="mlflow-sync", daemon=True)

    def start(self) -> None:
        """Copy in the background from now on."""
        self._thread.start()

    def close(self, status: Status = "FINISHED", timeout_s: float = 60.0) -> bool:
        """Copy the rest, set the status of the runs and end the thread; True if all of that was done within the time.

        The child run whose job wrote last gets ``status`` too; the jobs before it have finished. Trials that have not
        ended are shown as killed.
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
                self.sync_once(self._status if closing else "RUNNING")
                self._complete = closing
            except RefusedError as error:
                self.errors += 1
                if self.errors == 1:
                    logger.warning("%s", error)

    def sync_once(self, status: Status | None = None) -> int:
        """Copy what is new; returns the number of records.

        ``status`` is how the run is; None: as its own process said last, which may not have reached the store.
        Raises :class:`RefusedError` when the store does not take it; nothing is lost then.
        """
        with self._talking():
            status = noted(self._run_dir, status)
            database = sqlite_file(self.uri)
            # Writers of one SQLite file take turns: several that make its tables at once leave it half made, for good.
            with locked(database) if database else contextlib.nullcontext():
                self._store = self._store or Store(self.uri, self._settings.experiment)
                copy = RunCopy(self._run_dir, self._store, self._tags)
                return copy.copy(status, self._settings.register_model)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Around every use of MLflow: one process at a time, our settings for it, one kind of error."""
        with self._one_at_a_time:
            ours = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
            os.environ.update(ours)
            try:
                # The stages of a run may go on beside each other on several machines.
                with locked(self._run_dir / STATE):
                    yield
            except Exception as error:
                # MLflow lets through errors of requests, urllib3, SQLAlchemy and the database driver.
                self._store = None
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise RefusedError(
                    f"tracking.mlflow_uri is '{self.uri}', which cannot be used now ({reason}); "
                    f"when it can, run: refbert sync {self._run_dir}"
                ) from error
            finally:
                for name in ours:
                    os.environ.pop(name, None)
