"""A trial on its own."""

from pathlib import Path

import pytest
from tiny import tiny_values

from refbert_dist.config import parse_model
from refbert_dist.errors import UserError
from tune.config import Search
from tune.records import Trial, save_trial
from tune.search import begin
from tune.trial import run


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
