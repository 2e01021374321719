"""A store of MLflow, by the few calls that a copy needs: the only module that imports it, late, since that takes long.

Each call may be made again and then adds nothing: the store keeps one point for equal run, name, step, time and value.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

BATCH_METRICS = 500
BATCH_PARAMS = 100
"""Most parameters that MLflow takes in one request; of metrics it takes 1000."""
PARENT = "mlflow.parentRunId"
"""Tag by which the interface of MLflow shows one run below another."""
MODEL = "model"
"""Folder of a model among the artifacts of its run."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    step: int
    time_ms: int
    """Since the epoch."""


@dataclass(frozen=True)
class ModelFolder:
    """A model as MLflow is to load it, without any pickle."""

    folder: Path
    loader: str
    """Module whose ``_load_pyfunc(folder)`` gives an object with ``predict(frame)``."""
    inputs: Sequence[Mapping[str, Any]]
    """Columns of the frame, in MLflow's form of a schema."""
    outputs: Sequence[Mapping[str, Any]]
    """Columns of the answers."""
    requirements: Sequence[str]
    """What pip must install to load it."""


class Store:
    """One experiment in a store.

    Args:
        uri: where MLflow keeps its records.
        experiment: name, made when missing.

    Whatever MLflow, its driver or the network raises comes through.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.uri = uri
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._seen: set[str] = set()
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            database = sqlite_file(uri)
            # The default place of artifacts is the working directory, wherever that happens to be.
            location = (database.parent / "mlartifacts").as_uri() if database else None
            experiment_id = self._client.create_experiment(experiment, artifact_location=location)
        else:
            experiment_id = found.experiment_id
        self.experiment_id: str = experiment_id

    # -- runs ------------------------------------------------------------------------------------------------------

    def has_run(self, run: str) -> bool:
        """Whether a run is there and not deleted; asked once of each."""
        from mlflow.exceptions import MlflowException

        if run not in self._seen:
            try:
                if self._client.get_run(run).info.lifecycle_stage != "active":
                    return False
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            self._seen.add(run)
        return True

    def run_with(self, tags: Mapping[str, str], name: str, start_ms: int) -> str:
        """The run with these tags; when there is none it is made, as one that is running."""
        condition = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self._client.search_runs([self.experiment_id], condition, max_results=1)
        if found:
            run: str = found[0].info.run_id
        else:
            made = self._client.create_run(self.experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
            run = made.info.run_id
        self._seen.add(run)
        return run

    def show(self, run: str, status: Status, end_ms: int) -> None:
        """Set the status of a run, with the time of its end if that is what the status says."""
        if status == "RUNNING":
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status, end_time=end_ms)

    # -- what they hold --------------------------------------------------------------------------------------------

    def log_params(self, run: str, params: Mapping[str, str]) -> list[str]:
        """Add parameters; returns the names of those that stand with another value, which MLflow never changes."""
        from mlflow.entities import Param

        standing = self._client.get_run(run).data.params
        new = [Param(name, value) for name, value in params.items() if name not in standing]
        for batch in _batches(new, BATCH_PARAMS):
            self._client.log_batch(run, params=batch)
        return [name for name, value in params.items() if standing.get(name, value) != value]

    def log_metrics(self, run: str, points: Iterable[Point]) -> None:
        """Add values of metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
        for batch in _batches(metrics, BATCH_METRICS):
            self._client.log_batch(run, metrics=batch)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags; others stay."""
        from mlflow.entities import RunTag

        self._client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_file(self, run: str, path: Path) -> None:
        """Put a file among the artifacts of a run, in place of one of the same name."""
        self._client.log_artifact(run, str(path))

    def register(self, run: str, name: str, model: ModelFolder, temporary: Path) -> None:
        """Make a model of a run a version of the registered model ``name``, once.

        ``temporary``: a folder for the copy that is sent; whatever lies there is removed.
        """
        from mlflow.exceptions import MlflowException

        if self._client.search_model_versions(f"name = '{name}' and run_id = '{run}'"):
            return
        self._log_model(run, model, temporary)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(run).info.artifact_uri}/{MODEL}"
        made = self._client.create_model_version(name, source, run_id=run)
        logger.info("the exported model is version %s of %s", made.version, name)

    def _log_model(self, run: str, model: ModelFolder, temporary: Path) -> None:
        from mlflow import pyfunc
        from mlflow.models import ModelSignature

        signature = {"inputs": json.dumps(model.inputs), "outputs": json.dumps(model.outputs)}
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with warnings.catch_warnings():
                # It would like an example, to guess the signature from.
                warnings.simplefilter("ignore", UserWarning)
                pyfunc.save_model(
                    temporary,
                    loader_module=model.loader,
                    data_path=model.folder,
                    signature=ModelSignature.from_dict(signature),
                    pip_requirements=list(model.requirements),
                )
            self._client.log_artifacts(run, str(temporary), MODEL)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sqlite_file(uri: str) -> Path | None:
    """The file of a store in SQLite; None of any other."""
    return Path(uri.split(":///", 1)[1].split("?")[0]).resolve() if uri.startswith("sqlite") else None


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
