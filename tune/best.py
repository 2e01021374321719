"""The winner of a search, as an ordinary experiment."""

from __future__ import annotations

import json

from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.errors import RefusedError
from tune.config import Search
from tune.front import objectives_of, pick
from tune.records import Trial, finished, read_trials
from tune.search import check_same_search
from tune.space import experiment_at, shared_experiment


def choose(search: Search, how: str | None) -> Trial:
    """The finished trial to take; see :func:`tune.front.pick`. By default the knee of several objectives, or the best.

    Raises:
        RefusedError: no trial is finished.
        UserError: the trials are those of another search; or ``how`` says nothing, or leaves none.
    """
    check_same_search(search)
    run_dir = search.experiment.run.dir
    ended = finished(read_trials(run_dir))
    if not ended:
        raise RefusedError(f"run.dir '{run_dir}' has no finished trial to choose from; run refbert tune first")
    objectives = objectives_of(search)
    place = pick(how or ("knee" if len(objectives) > 1 else "score"), [trial.figures for trial in ended], objectives)
    return ended[place]


def best_experiment(search: Search, trial: Trial) -> Experiment:
    """A trial's student in ``RUN_DIR/best``, trained on all training rows and evaluated, for once, on dev.

    What its general stage and the neighbours have cost is not paid again.
    """
    shared = shared_experiment(search)
    changes = {
        "run.dir": str(shared.run.dir / "best"),
        "cache.layers": search.experiment.cache.model_dump(mode="json")["layers"],
        "task.held_out": 0.0,
    }
    exp = experiment_at(shared, trial.point)
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    return parse_experiment(apply_overrides(exp.model_dump(mode="json"), overrides))
