"""Points, the experiments at them, and what is stored for all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_values

from refbert_dist.cache.contract import states_artifact
from refbert_dist.cache.models import general_student
from refbert_dist.references.neighbours import neighbours_artifact
from tune.config import Search
from tune.space import experiment_at, grid, grid_size, shared_experiment, trial_experiment


def search_of(root: Path, space: dict[str, Any], **sections: Any) -> Search:
    values = tiny_values(root)
    values["task"]["held_out"] = 0.2
    return Search.model_validate({"experiment": {**values, **sections}, "space": space})


def test_the_width_of_the_feed_forward_layer_can_follow_the_hidden_one(tmp_path: Path) -> None:
    search = search_of(tmp_path, {"student.hidden": [24], "student.intermediate_ratio": [2.5]})
    exp = experiment_at(search.experiment, {"student.hidden": 32, "student.intermediate_ratio": 2.5})
    assert exp.student.intermediate == 80


def test_as_much_is_stored_as_any_point_reads(tmp_path: Path) -> None:
    search = search_of(tmp_path, {"student.layers": [1, 2, 4], "references.count": [0, 3], "student.heads": [5, 4]})
    shared = shared_experiment(search)
    assert shared.references.stored_count == 3
    # One layer reads 4 (and its input 3), two read 2 and 4, four read all.
    assert shared.cache.layers == (1, 2, 3, 4)
    narrow = shared_experiment(search_of(tmp_path, {"student.layers": [1, 2]}))
    assert narrow.cache.layers == (1, 2, 3, 4)
    assert shared_experiment(search_of(tmp_path, {"student.hidden": [24]})).cache.layers == (1, 2, 3, 4)
    # The experiment's own student has two layers; it is not in the space.
    without = shared_experiment(search_of(tmp_path, {"student.layers": [1]}))
    assert without.cache.layers == (3, 4) and without.student.layers == 1


def test_trials_find_what_is_shared(tmp_path: Path) -> None:
    search = search_of(tmp_path, {"student.layers": [1, 2], "references.count": [0, 1, 3]})
    shared = shared_experiment(search)
    for point in grid(search):
        trial = trial_experiment(search, point, tmp_path / "trial", 1.0)
        for scope in ("general", "task"):
            assert states_artifact(trial, scope).path == states_artifact(shared, scope).path
        for part in ("corpus", "train", "dev"):
            assert neighbours_artifact(trial, part).path == neighbours_artifact(shared, part).path
        assert not trial.tracking.mlflow


def test_a_share_of_the_general_stage_is_another_student(tmp_path: Path) -> None:
    search = search_of(tmp_path, {"student.layers": [1, 2]})
    half, whole = (trial_experiment(search, {"student.layers": 1}, tmp_path, share) for share in (0.5, 1.0))
    assert general_student(half, "refbert") != general_student(whole, "refbert")
    assert whole.distill.general.steps_taken(100) == 2 * half.distill.general.steps_taken(100)


def test_grids(tmp_path: Path) -> None:
    stepped = {"low": 1, "high": 2, "step": 0.5}
    search = search_of(tmp_path, {"student.layers": [1, 2], "distill.temperature": stepped})
    points = list(grid(search))
    assert grid_size(search) == len(points) == 6
    assert points[:2] == [
        {"student.layers": 1, "distill.temperature": 1},
        {"student.layers": 1, "distill.temperature": 1.5},
    ]
    assert grid_size(search_of(tmp_path, {"distill.temperature": {"low": 1, "high": 2}})) is None


@pytest.mark.parametrize("count", [0, 1])
def test_points_survive_json(tmp_path: Path, count: int) -> None:
    search = search_of(tmp_path, {"distill.layer_map": ["uniform", [1, 3]], "references.count": [0, 1]})
    point = {"distill.layer_map": [1, 3], "references.count": count}
    assert experiment_at(search.experiment, json.loads(json.dumps(point))).distill.layer_map == (1, 3)
