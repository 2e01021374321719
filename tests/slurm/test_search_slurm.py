"""A search in an allocation of two nodes, told to stop as at its time limit; then the node that leads it crashes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from survivors import CRASHED, STOPPED, await_ends, job_ids, nodes_of, stage_status, submit, until
from tiny import tiny_values

from launchers.cluster.records import attempts
from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.config import Experiment, parse_model
from refbert_dist.engine.reports import log_path
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.provenance import FILE_NAME as PROVENANCE
from tune.config import Search
from tune.records import read_trials, trial_folder
from tune.search import STAGE, begin

STEPS = 5


@pytest.fixture(scope="module")
def searched(sandbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """Done, after two starts that ended while a trial was training on each node."""
    values = tiny_values(tmp_path_factory.mktemp("search"))
    values["distill"]["general"]["steps"] = 300
    values["systems"], values["task"]["held_out"] = ["refbert"], 0.2
    search = {
        "experiment": values,
        "space": {"student.layers": [1, 2], "references.count": [0, 2]},
        "look": {"algorithm": "grid"},
        # One on each node: SLURM gives each process one core.
        "trial": {"cpus": 1},
    }
    exp = begin(parse_model(Search, search))
    pipeline.run(exp, pipeline.stage_named(STAGE).needs)
    submit(exp, STAGE)
    until(lambda: len(_training(exp)) == 2, "a trial on each node")
    job = job_ids(exp)[STAGE]
    sandbox.sh("scancel", "--signal=USR2", job)
    until(lambda: len(attempts(exp.run.dir, job)) == 2, "another start", 120.0)
    until(lambda: len(_starts(exp, 2)) == 2, "both trials again")
    first = nodes_of(sandbox, job)[0]
    sandbox.node("crash", first)
    # SLURM would take a minute to miss it.
    sandbox.sh("scontrol", "update", f"nodename={first}", "state=down", "reason=test")
    until(lambda: len(attempts(exp.run.dir, job)) == 3, "a third start", 240.0)
    await_ends(exp)
    yield exp


def _training(exp: Experiment) -> list[Path]:
    """Records of the trials that have done some steps, so that there is something to save."""
    return [path for path in exp.run.dir.glob("trials/*/metrics.jsonl") if len(path.read_text().splitlines()) > STEPS]


def _starts(exp: Experiment, least: int) -> list[list[dict[str, Any]]]:
    """Of the trials that were started so many times."""
    found = [read_json_or_none(path) or [] for path in sorted(exp.run.dir.glob(f"trials/*/{PROVENANCE}"))]
    return [starts for starts in found if len(starts) >= least]


def test_it_stops_and_goes_on_to_its_end(searched: Experiment) -> None:
    job = job_ids(searched)[STAGE]
    assert [start.exit_code for start in attempts(searched.run.dir, job)] == [STOPPED, CRASHED, 0]
    trials = read_trials(searched.run.dir)
    assert [trial.state for trial in trials] == ["finished"] * 4
    assert stage_status(searched, STAGE).state == "done"
    assert {row["trial"] for row in read_json(searched.run.dir / "results.json")} == {trial.name for trial in trials}


def test_trials_ran_on_both_nodes_and_went_on_where_they_were(searched: Experiment) -> None:
    folders = [trial_folder(searched.run.dir, trial.number) for trial in read_trials(searched.run.dir)]
    starts = [read_json(folder / PROVENANCE) for folder in folders]
    assert len({start["hostname"] for of_trial in starts for start in of_trial}) >= 2
    continued = [
        log_path(folder, "trial", 0).read_text()
        for folder, found in zip(folders, starts, strict=True)
        if len(found) > 1
    ]
    assert len(continued) == 2
    assert all("continues from step" in log for log in continued)


def test_no_ray_is_left(searched: Experiment, sandbox: Any) -> None:
    assert not list(searched.run.dir.glob(".ray*"))
    for node in ("n1", "n2", "n3", "n4"):
        until(lambda node=node: "raylet" not in sandbox.exec(node, "ps", "ax"), f"the end of Ray on {node}")
