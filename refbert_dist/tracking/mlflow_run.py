"""The copy of one run directory in MLflow, and below it those of the trials that it holds.

An experiment of MLflow has a run for each run directory, with its parameters, tags, small files, results and use of the
machine. Below it lies a run for each job, with the metrics by step; and of a search, whose trials are run directories
in ``RUN_DIR/trials/``, a run for each trial, with its own jobs below. ``mlflow.json`` in every run directory remembers
what has been copied.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from refbert_dist.tracking import mlflow_facts as facts
from refbert_dist.tracking.files import read_json_or_none, replace_json
from refbert_dist.tracking.metrics import FILE_NAME as METRICS
from refbert_dist.tracking.metrics import parse_record
from refbert_dist.tracking.mlflow_model import exported_model
from refbert_dist.tracking.mlflow_store import PARENT, Point, Status, Store
from refbert_dist.tracking.provenance import FILE_NAME as PROVENANCE
from refbert_dist.tracking.provenance import run_id
from refbert_dist.tracking.system import FILE_NAME as SYSTEM

Tags = Callable[[Path], Mapping[str, str]]
"""More tags of a run directory."""

FILE_NAME = "mlflow.json"
ARTIFACTS = (facts.EXPERIMENT, facts.SEARCH, facts.TRIAL, PROVENANCE, facts.RESULTS, "report.html")
EXPORT = "export/config.json"
STAGES = "stages"
"""A folder, that changes with every stage that ends."""
WATCHED = (*ARTIFACTS, METRICS, SYSTEM, facts.SUBMISSIONS, STAGES, EXPORT)
TAG_SOURCES = {facts.EXPERIMENT, PROVENANCE, facts.SUBMISSIONS, STAGES}
CHUNK_LINES = 500

logger = logging.getLogger(__name__)


@dataclass
class State:
    """What is remembered of a copy."""

    noted: Status | None = None
    """How the process that drove the run last said that it is, whether or not MLflow could be told."""
    place: dict[str, str | None] = field(default_factory=dict)
    """The store that all below is about."""
    run: str = ""
    status: Status | None = None
    """As shown; None: not known."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Job -> ``run``, ``status``, ``last_ms`` (time of its last record); the one that wrote last comes last."""
    offsets: dict[str, int] = field(default_factory=dict)
    """File of records -> bytes that were copied."""
    began: float | None = None
    """Time of the first record about the machine, seconds since the epoch."""
    stamps: dict[str, list[int]] = field(default_factory=dict)
    """File -> its time and size when it was copied."""
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run_dir: Path) -> State:
        """As it was left; a lost or foreign file is an empty one."""
        found = read_json_or_none(run_dir / FILE_NAME) or {}
        return cls(**{item.name: found[item.name] for item in fields(cls) if item.name in found})

    def save(self, run_dir: Path) -> None:
        """For the next pass, whichever process makes it."""
        replace_json(run_dir / FILE_NAME, asdict(self))


def noted(run_dir: Path, status: Status | None) -> Status | None:
    """Note how a run is, before MLflow is told, which may fail; without a status: what was noted last."""
    state = State.of(run_dir)
    if status is None or status == state.noted:
        return state.noted
    state.noted = status
    state.save(run_dir)
    return status


class RunCopy:
    """One run directory on its way to a store; for a single pass by a single process.

    Args:
        run_dir: the run, whose provenance must have been written.
        store: where it goes.
        tags: of every run beside those that its files give.
        parent: the run of the search that this one is a trial of.
    """

    def __init__(self, run_dir: Path, store: Store, tags: Tags, parent: str | None = None) -> None:
        self._run_dir = run_dir
        self._store = store
        self._tags = tags
        self._parent = parent
        self._place = {"store": store.uri, "experiment": store.experiment_id, "parent": parent}
        self._state = State.of(run_dir)

    def copy(self, status: Status | None, register: str | None = None) -> int:
        """Copy what is new; returns the number of records.

        Args:
            status: how the run is to be shown; None leaves that.
            register: name under which the exported model is registered, once.
        """
        copied = 0
        stamps = _stamps(self._run_dir)
        if self._parent is None:
            self._open()
        # A search has hundreds of trials, most of which have ended: nothing is asked of the store for those.
        known = (self._state.place, self._state.stamps) == (self._place, stamps)
        if not known or status not in (None, self._state.status):
            copied = self._copy_changes(stamps, status, register)
        if self._parent is None:
            for started in sorted(self._run_dir.glob(f"trials/*/{PROVENANCE}")):
                trial = RunCopy(started.parent, self._store, self._tags, self._state.run)
                copied += trial.copy(facts.trial_status(started.parent, status))
        return copied

    def _copy_changes(self, stamps: dict[str, list[int]], status: Status | None, register: str | None) -> int:
        self._open()
        self._describe({name for name, stamp in stamps.items() if self._state.stamps.get(name) != stamp})
        copied = self._copy_metrics(status) + self._copy_system()
        if register:
            self._register(register)
        self._show(status, max(modified for modified, _ in stamps.values()) // 10**6)
        self._state.stamps = stamps
        self._state.save(self._run_dir)
        return copied

    def _open(self) -> None:
        """Find the run that is this one's, or make it."""
        if self._state.place == self._place and self._store.has_run(self._state.run):
            return
        tags = {"refbert.run": run_id(self._run_dir)}
        run = self._store.run_with(tags, self._run_dir.name, facts.started_ms(self._run_dir))
        self._state = State(noted=self._state.noted, place=self._place, run=run)
        self._state.save(self._run_dir)

    def _describe(self, changed: set[str]) -> None:
        run, state = self._state.run, self._state
        if changed & TAG_SOURCES:
            tags = {**facts.origin(self._run_dir), **self._tags(self._run_dir)}
            tags |= {PARENT: self._parent} if self._parent else {}
            self._store.set_tags(run, {name: value for name, value in tags.items() if state.tags.get(name) != value})
            state.tags = tags
        if changed & {facts.EXPERIMENT, facts.SEARCH}:
            kept = self._store.log_params(run, facts.parameters(self._run_dir))
            if kept:
                logger.info("MLflow keeps the first values of %s; experiment.yaml has those of now", ", ".join(kept))
        if facts.RESULTS in changed:
            self._store.log_metrics(run, facts.figures(self._run_dir))
        for name in ARTIFACTS:
            if name in changed:
                self._store.log_file(run, self._run_dir / name)

    def _copy_metrics(self, status: Status | None) -> int:
        copied = 0
        for records in self._new_records(METRICS):
            points: dict[str, list[Point]] = defaultdict(list)
            for record in records:
                points[record["job"]] += _points(record, record["step"], {"time", "step"})
                self._see_job(record["job"], _milliseconds(record), status)
            for job, found in points.items():
                self._store.log_metrics(self._state.jobs[job]["run"], found)
            copied += len(records)
        return copied

    def _see_job(self, name: str, time_ms: int, status: Status | None) -> None:
        """A record of a job: see to it that its run exists, and is shown as running if the whole is."""
        # Taken out and put in again, so that the job which wrote last comes last.
        job = self._state.jobs.pop(name, None)
        if job is None or not self._store.has_run(job["run"]):
            tags = {PARENT: self._state.run, "refbert.job": name}
            job = {"run": self._store.run_with(tags, name, time_ms), "status": None}
        if status == "RUNNING" and job["status"] != status:
            self._store.show(job["run"], status, time_ms)
            job["status"] = status
        self._state.jobs[name] = {**job, "last_ms": time_ms}

    def _copy_system(self) -> int:
        copied = 0
        for records in self._new_records(SYSTEM):
            points: list[Point] = []
            for record in records:
                self._state.began = self._state.began or record["time"]
                points += _points(record, round(record["time"] - self._state.began), {"time"}, prefix="system/")
            self._store.log_metrics(self._state.run, points)
            copied += len(records)
        return copied

    def _new_records(self, name: str) -> Iterator[list[dict[str, Any]]]:
        """What was appended to a file, in chunks; one counts as copied when the next is asked for."""
        path = self._run_dir / name
        if not path.exists():
            return
        with path.open("rb") as stream:
            offset = self._state.offsets.get(name, 0)
            stream.seek(offset if offset <= path.stat().st_size else 0)
            while lines := _whole_lines(stream):
                yield [record for line in lines if (record := parse_record(line))]
                self._state.offsets[name] = stream.tell()
                self._state.save(self._run_dir)

    def _register(self, name: str) -> None:
        if not (self._run_dir / EXPORT).exists():
            return
        model = exported_model((self._run_dir / EXPORT).parent)
        if model is None:
            logger.info("%s holds an encoder without a head, so there is nothing to register as %s", EXPORT, name)
        else:
            self._store.register(self._state.run, name, model, self._run_dir / ".mlflow-model")

    def _show(self, status: Status | None, end_ms: int) -> None:
        """Set the statuses. The job that wrote last gets that of the run; the jobs before it have finished."""
        if status is None:
            return
        if status != "RUNNING":
            for place, job in enumerate(self._state.jobs.values(), start=1):
                ended: Status = status if place == len(self._state.jobs) else "FINISHED"
                if job["status"] != ended:
                    self._store.show(job["run"], ended, job["last_ms"])
                    job["status"] = ended
        if status != self._state.status:
            self._store.show(self._state.run, status, end_ms)
            self._state.status = status


def _points(record: Mapping[str, Any], step: int, leave_out: set[str], prefix: str = "") -> Iterable[Point]:
    return [
        Point(prefix + name, value, step, _milliseconds(record))
        for name, value in record.items()
        if facts.is_number(value) and name not in leave_out
    ]


def _milliseconds(record: Mapping[str, Any]) -> int:
    return round(1000 * float(record["time"]))


def _stamps(run_dir: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name in WATCHED:
        try:
            stat = (run_dir / name).stat()
        except FileNotFoundError:
            continue
        found[name] = [stat.st_mtime_ns, stat.st_size]
    return found


def _whole_lines(stream: Any) -> list[bytes]:
    """The next lines; one that is not ended yet is left for later."""
    lines = list(itertools.islice(iter(stream.readline, b""), CHUNK_LINES))
    if lines and not lines[-1].endswith(b"\n"):
        stream.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines
