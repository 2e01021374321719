"""Ray Tune runs the trials, on a Ray that :mod:`tune.nodes` has started.

Ray places trials on processors, starts them again after a crash, and decides with ASHA which end early. It keeps no
state that is read back: what a search knows is in the records of its trials (:mod:`tune.ledger`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from refbert_dist.engine.reports import error_path
from refbert_dist.engine.stop import StopFlag
from refbert_dist.errors import RefBertError, StoppedError, UserError
from tune.config import Search
from tune.ledger import Ledger
from tune.records import trial_folder
from tune.trial import STAGE, bring, figures

STOP_FILE = ".stop"
SCORE = "score"
"""Name of what the scheduler compares; of a trial that failed there is none."""
STOP_POLL_S = 0.5
STOPPED = "the search was stopped; run the same command again to continue"
NUMBER, RUN_DIR, SHARES, THREADS, METRIC = "number", "run_dir", "shares", "threads", "metric"


@contextmanager
def started(cores: int, store_bytes: int, temporary: Path, alone: bool) -> Iterator[str]:
    """Ray with this process's node as its first; gives the address for others to join, unless it stays ``alone``.

    Its daemons end with this process.
    """
    place = {"_node_ip_address": "127.0.0.1"} if alone else {}
    found = ray.init(
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=store_bytes,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temporary),
        **place,
    )
    try:
        yield found.address_info["gcs_address"]
    finally:
        ray.shutdown()


def nodes_alive() -> int:
    """Nodes that are there now."""
    return sum(node["Alive"] for node in ray.nodes())


class RayTrial(tune.Trainable):  # type: ignore[misc]
    """A trial as Ray sees it: each iteration brings it to its next rung, in a process of its own."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take over a trial."""
        self._rung = 0
        self._trial = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial, in the same Ray worker."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: the run directory of a trial holds all that it goes on from."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """As little."""

    def step(self) -> dict[str, Any]:
        """Go on to the next rung; gives the figures there.

        An error that explains itself is in ``error``: to start again would not help. Any other is Ray's to retry.
        """
        number, run_dir, share = self._trial[NUMBER], Path(self._trial[RUN_DIR]), self._trial[SHARES][self._rung]
        self._rung += 1
        last = self._rung == len(self._trial[SHARES])
        result = {NUMBER: number, "share": share}
        try:
            with _stopping_with(run_dir / STOP_FILE):
                bring(run_dir, number, share, self._trial[THREADS])
        except StoppedError:
            return {**result, "interrupted": True, "done": True}
        except RefBertError as error:
            if not error_path(trial_folder(run_dir, number), STAGE, 0).exists():
                raise
            return {**result, "error": str(error), "done": True}
        found = figures(run_dir, number, share)
        # As text, because Ray takes dictionaries apart; the score apart, for the scheduler.
        return {**result, "figures": json.dumps(found), SCORE: found[self._trial[METRIC]], "done": last}


@contextmanager
def _stopping_with(path: Path) -> Iterator[None]:
    """While inside, the appearance of a file is a SIGINT for this process, upon which a trial saves and ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(STOP_POLL_S):
            if path.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _FromLedger(Searcher):  # type: ignore[misc]
    """Ray asks for the next trial, and tells how each one goes on."""

    def __init__(self, ledger: Ledger, config: dict[str, Any]) -> None:
        super().__init__()
        self._ledger = ledger
        self._config = config
        self._numbers: dict[str, int] = {}
        self.under_way: set[str] = set()
        """Trials that Ray has, by its own names."""
        self.closed = False
        """Whether there are to be no more."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial of the ledger."""
        if self.closed:
            return None
        trial = self._ledger.next()
        if trial is None:
            return Searcher.FINISHED
        self.under_way.add(trial_id)
        self._numbers[trial_id] = trial.number
        return {**self._config, NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A rung was reached."""
        if "figures" in result:
            self._ledger.scored(result[NUMBER], result["share"], json.loads(result["figures"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over."""
        self.under_way.discard(trial_id)
        result = result or {}
        if "interrupted" in result:
            return
        if "figures" in result:
            self.on_trial_result(trial_id, result)
        crash = f"it crashed each time; see {trial_folder(Path(self._config[RUN_DIR]), self._numbers[trial_id])}/logs"
        self._ledger.ended(self._numbers[trial_id], result.get("error") or (crash if error else None))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is ever read back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Starts(tune.Callback):  # type: ignore[misc]
    """Tells the ledger when a trial has got its place; Ray asks for it a little earlier."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts, or starts again."""
        self._ledger.began(trial.config[NUMBER])

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Ends the search when this process is told to, or when there is no hope."""

    def __init__(self, ledger: Ledger, trials: _FromLedger, signals: StopFlag, stop_file: Path) -> None:
        self._ledger = ledger
        self._trials = trials
        self._signals = signals
        self._stop_file = stop_file
        self.reason: RefBertError | None = None

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked several times a second."""
        if self.reason is None:
            if self._signals.requested:
                self.reason = StoppedError(STOPPED)
            try:
                self._ledger.require_hope()
            except RefBertError as error:
                self.reason = error
            if self.reason:
                self._trials.closed = True
                self._stop_file.touch()
        # Ray would give them ten seconds. They take as long as they need to save, up to a limit of their own.
        return self.reason is not None and not self._trials.under_way

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_trials(search: Search, ledger: Ledger, run_dir: Path, signals: StopFlag) -> None:
    """Run all trials that are left. Ray must have been started.

    Raises:
        UserError: a trial asks for more than there is.
        StoppedError: a signal came; the trials have saved.
        RefusedError: trials do nothing but fail.
    """
    fitting = trials_at_once(search, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    stop_file, scratch = run_dir / STOP_FILE, run_dir / ".ray"
    stop_file.unlink(missing_ok=True)
    config = {RUN_DIR: str(run_dir.resolve()), SHARES: list(search.shares), THREADS: search.trial.threads}
    config[METRIC] = search.metric("score")
    trials = _FromLedger(ledger, config)
    stopper = _Stopper(ledger, trials, signals, stop_file)
    resources = tune.PlacementGroupFactory([{"CPU": search.trial.cores, "GPU": search.trial.gpus}])
    tuner = tune.Tuner(
        tune.with_resources(RayTrial, resources),
        tune_config=tune.TuneConfig(
            search_alg=trials,
            scheduler=_scheduler(search),
            num_samples=ledger.left,
            # No more than fit: a point is better chosen when it can start, by all that is known then.
            max_concurrent_trials=search.trial.concurrent or fitting,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config[NUMBER]:04d}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            stop=stopper,
            callbacks=[_Starts(ledger)],
            failure_config=tune.FailureConfig(max_failures=search.trial.failures),
            verbose=0,
        ),
    )
    try:
        with _log_to(run_dir / "logs" / "ray.log"):
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        stop_file.unlink(missing_ok=True)
    if stopper.reason:
        raise stopper.reason
    if ledger.of("running", "waiting"):
        # Told to stop apart from the search, as when a signal goes to one node alone.
        raise StoppedError(STOPPED)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what Ray has to say to a file: a person is told of failed trials by the report, in a sentence each."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("ray")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
        handler.close()


def _scheduler(search: Search) -> TrialScheduler:
    if not search.halving.rungs:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="training_iteration",
        metric=SCORE,
        mode="max",
        max_t=len(search.shares),
        grace_period=1,
        reduction_factor=search.halving.reduction,
    )


def trials_at_once(search: Search, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials that fit at once on nodes with these resources (``CPU``, ``GPU``).

    Raises :class:`UserError` for what would wait for ever.
    """
    cpus, gpus = (max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if search.trial.cores > cpus:
        raise UserError(
            f"a trial asks for {search.trial.cores} CPUs (trial.cpus, or else trial.processes), but the "
            f"largest node here has {cpus:g}; set trial.cpus to at most {cpus:g}"
        )
    if search.trial.gpus > gpus:
        raise UserError(
            f"trial.gpus is {search.trial.gpus:g}, but the largest node here has {gpus:g} GPU(s); set trial.gpus to at "
            f"most {gpus:g}"
        )
    fitting = sum(_fitting(search, node) for node in nodes)
    if search.trial.concurrent and search.trial.concurrent > fitting:
        raise UserError(
            f"trial.concurrent is {search.trial.concurrent}, but of trials with {search.trial.cores} CPU(s) and "
            f"{search.trial.gpus:g} GPU(s) each only {fitting} fit here; set trial.concurrent to at most {fitting}"
        )
    return fitting


def _fitting(search: Search, node: Mapping[str, float]) -> int:
    fits = node.get("CPU", 0.0) // search.trial.cores
    if search.trial.gpus:
        fits = min(fits, node.get("GPU", 0.0) / search.trial.gpus + 1e-9)
    return int(fits)
