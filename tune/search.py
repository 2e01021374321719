"""A search is an ordinary run whose stages make what all trials share, and whose last stage runs the trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refbert_dist import pipeline
from refbert_dist.artifacts import make_folder, read_json, write_json, write_text
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.engine.stop import watching_signals
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.rundir import (
    EXPERIMENT,
    MAY_CHANGE,
    SEARCH,
    check_same_experiment,
    is_search,
    require_same,
    stage_record,
)
from refbert_dist.tracking.metrics import MetricsLog
from refbert_dist.tracking.progress import Progress
from tune import nodes
from tune.config import Search, stored_search
from tune.figures import Gate, timed_shapes
from tune.front import objectives_of, pareto_front
from tune.ledger import Ledger, require_points, total
from tune.records import ENDED, Trial, finished, read_trials, trial_folder
from tune.space import check_space, grid, shared_experiment
from tune.trial import rung_folder

STAGE = "search"
SEARCH_MAY_CHANGE = ("look.trials", "trial", *(f"experiment.{name}" for name in MAY_CHANGE))
"""What a search that is continued may have otherwise."""


def check(search: Search) -> None:
    """Everything that can be known to be wrong before anything is started. Raises UserError."""
    check_space(search)
    if search.look.algorithm == "grid":
        next(grid(search))
    if search.times_shapes and timed_shapes(search) and not search.experiment.evaluate.latency_repeats:
        raise UserError(
            "experiment.evaluate.latency_repeats is 0, but latency_ms is an objective or a limit; set it to 15, say"
        )
    check_same_search(search)
    require_points(search)
    pipeline.check(shared_experiment(search))


def begin(search: Search) -> Experiment:
    """Check a search and set up its run directory, or find it there; returns the run whose last stage it is.

    Raises UserError where the directory holds another search, or no search.
    """
    check(search)
    shared = shared_experiment(search)
    run_dir = shared.run.dir
    check_same_experiment(shared)
    if (run_dir / EXPERIMENT).exists() and not is_search(run_dir):
        raise UserError(f"run.dir '{run_dir}' holds an ordinary run; choose another run.dir for the search")
    if is_search(run_dir) and stored_search(run_dir).look.trials != search.look.trials:
        stage_record(run_dir, STAGE).unlink(missing_ok=True)
    make_folder(run_dir)
    write_text(run_dir / SEARCH, to_yaml(search))
    return shared


def check_same_search(search: Search) -> None:
    """Refuse a run directory that holds another search; the message names the first field that differs."""
    run_dir = search.experiment.run.dir
    if is_search(run_dir):
        require_same("search", run_dir, stored_search(run_dir), search, SEARCH_MAY_CHANGE)


def run(exp: Experiment) -> dict[str, Any]:
    """The stage: run the trials that are left, and write ``RUN_DIR/results.json``.

    One process on each node calls this. The first one decides; the others lend their nodes to its trials.

    Raises:
        StoppedError: a signal came; the trials have saved.
        RefusedError: no trial came to its end.
    """
    run_dir, world = exp.run.dir, World.from_environment()
    with watching_signals() as signals:
        if world.rank:
            nodes.lend(run_dir, world, signals)
            return {}
        search = stored_search(run_dir)
        with Progress(STAGE, total(search), "trials", run_dir) as progress, MetricsLog(run_dir) as metrics:
            ledger = _ledger(search, exp, progress, metrics)
            # The other nodes wait to be called, even if only to hear that nothing is left to do.
            if ledger.left or world.size > 1:
                with nodes.gathered(run_dir, world, signals):
                    from tune.driver import run_trials

                    with signals.deferred():
                        run_trials(search, ledger, run_dir, signals)
    from tune.report import write_search_report

    rows = write_results(search, run_dir)
    write_search_report(run_dir)
    if not any(row["state"] == "finished" for row in rows):
        raise RefusedError(f"no trial of {run_dir} came to its end; refbert report tells why")
    return {"trials": len(ledger.trials), "finished": len(ledger.of("finished")), "failed": len(ledger.of("failed"))}


def _ledger(search: Search, exp: Experiment, progress: Progress, metrics: MetricsLog) -> Ledger:
    told, latencies_ms = 0, None
    if search.times_shapes:
        # It loads torch, which a plan on a login node does without.
        from tune.timing import time_shapes

        latencies_ms = time_shapes(search, exp)

    def changed(ledger: Ledger) -> None:
        nonlocal told
        leading, best, ended = ledger.objectives[0].name, ledger.best, len(ledger.of(*ENDED))
        numbers = {f"best_{leading}": best.figures[leading]} if best else {}
        progress.update(ended, running=len(ledger.of("running")), **numbers)
        if ended > told:
            told = ended
            metrics.write(STAGE, STAGE, ended, numbers)

    ledger = Ledger(search, exp.run.dir, Gate(search, latencies_ms), changed)
    changed(ledger)
    return ledger


def write_results(search: Search, run_dir: Path) -> list[dict[str, Any]]:
    """``RUN_DIR/results.json``: the rows of all scored trials, with what they are and whether they are on the front."""
    trials = read_trials(run_dir)
    ended = finished(trials)
    front = {ended[place].number for place in pareto_front([trial.figures for trial in ended], objectives_of(search))}
    rows = [
        {**row, **_of_trial(trial), "on_front": trial.number in front}
        for trial in trials
        if trial.rungs
        for row in _rows(run_dir, trial)
    ]
    write_json(run_dir / "results.json", rows)
    return rows


def _rows(run_dir: Path, trial: Trial) -> list[dict[str, Any]]:
    folder = rung_folder(trial_folder(run_dir, trial.number), trial.rungs[-1].share)
    return [row for row in read_json(folder / "results.json") if row["system"] != "teacher"]


def _of_trial(trial: Trial) -> Mapping[str, Any]:
    shape = {name: trial.figures.get(name) for name in ("gflops", "latency_ms", "teacher_samples")}
    return {"trial": trial.name, "state": trial.state, "share": trial.rungs[-1].share, "point": trial.point, **shape}
