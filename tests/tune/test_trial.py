"""A trial on its own."""

from pathlib import Path

import pytest
from tiny import tiny_values

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.config import parse_model
from refbert_dist.errors import UserError
from refbert_dist.tracking.metrics import read_metrics
from tune.config import Search
from tune.records import Trial, save_trial, trial_folder
from tune.search import STAGE, begin
from tune.trial import bring, run


def test_a_trial_never_makes_what_all_trials_share(tmp_path: Path) -> None:
    """It would do so once for each trial, and nobody would see it but the clock."""
    values = tiny_values(tmp_path)
    values["task"]["held_out"] = 0.2
    space = {"student.layers": [1, 2], "references.count": [0, 2]}
    run_dir = begin(parse_model(Search, {"experiment": values, "space": space})).run.dir
    save_trial(run_dir, Trial(1, {"student.layers": 1, "references.count": 2}))
    with pytest.raises(
        UserError, match=r"cache.dir '.*' lacks what prepare, retrieve, cache-general, finetune, cache-task "
    ):
        run(run_dir, 1, 1.0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.dist
def test_a_trial_of_two_processes_comes_to_the_same(tmp_path: Path) -> None:
    point = {"student.layers": 1, "references.count": 2}
    losses = []
    for processes in (1, 2):
        values = tiny_values(tmp_path)
        values["systems"], values["task"]["held_out"] = ["refbert"], 0.2
        # Apart, or the second would take over the student of the first one.
        values["run"]["dir"], values["cache"]["dir"] = (
            str(tmp_path / f"{name}-{processes}") for name in ("run", "cache")
        )
        space = {name: [value] for name, value in point.items()}
        search = parse_model(Search, {"experiment": values, "space": space, "trial": {"processes": processes}})
        shared = begin(search)
        pipeline.run(shared, pipeline.stage_named(STAGE).needs)
        save_trial(shared.run.dir, Trial(1, point))
        bring(shared.run.dir, 1, 1.0, search.trial.threads)
        folder = trial_folder(shared.run.dir, 1)
        assert read_json(folder / "stages" / "distill-general.json")["processes"] == processes
        losses.append([record["loss"] for record in read_metrics(folder) if record["stage"].startswith("distill")])
    assert len(losses[0]) == 14
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
