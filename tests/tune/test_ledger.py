"""The book of a search, and what a search that was killed makes of it."""

from pathlib import Path
from typing import Any

import pytest
from searches import search_of

from refbert_dist.errors import RefusedError
from tune.config import Look, Search
from tune.figures import Gate
from tune.ledger import Ledger
from tune.records import read_trials, trial_folder


def ledger_of(search: Search) -> Ledger:
    return Ledger(search, search.experiment.run.dir, Gate(search), lambda ledger: None)


def one_objective(root: Path, **changes: Any) -> Search:
    search = search_of(root, root / "run", ["score"])
    return search.model_copy(update={"look": search.look.model_copy(update=changes)})


def finish(ledger: Ledger, number: int, score: float) -> None:
    ledger.scored(number, 1.0, {"accuracy": score, "seconds": 1.0, "teacher_samples": 0.0})
    ledger.ended(number)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "nsga2"])
def test_points_are_new_allowed_and_written_before_they_start(tmp_path: Path, algorithm: str) -> None:
    search = one_objective(tmp_path, algorithm=algorithm, trials=15)
    ledger = ledger_of(search)
    while trial := ledger.next():
        assert read_trials(search.experiment.run.dir)[-1] == trial
        ledger.began(trial.number)
        finish(ledger, trial.number, 0.1 * trial.point["student.layers"])
    points = [str(trial.point) for trial in ledger.trials.values()]
    assert len(points) == len(set(points)) == 15
    assert ledger.best is not None and ledger.best.point["student.layers"] == 3


def test_what_was_running_goes_on_and_what_has_ended_stays(tmp_path: Path) -> None:
    search = one_objective(tmp_path, trials=5)
    ledger = ledger_of(search)
    for number in (1, 2, 3):
        assert ledger.next() == ledger.trials[number]
        ledger.began(number)
    finish(ledger, 2, 0.7)
    again = ledger_of(search)
    assert again.left == 4
    assert [trial.number for _ in range(4) if (trial := again.next())] == [1, 3, 4, 5]
    assert again.next() is None
    assert again.trials[2].state == "finished"
    assert again.trials[1] == ledger.trials[1]


def test_a_continued_search_may_ask_for_more(tmp_path: Path) -> None:
    ledger = ledger_of(one_objective(tmp_path, trials=1))
    assert ledger.next() is not None
    finish(ledger, 1, 0.5)
    more = ledger_of(one_objective(tmp_path, trials=2))
    trial = more.next()
    assert trial is not None and trial.number == 2 and trial.point != ledger.trials[1].point


@pytest.mark.parametrize(
    ("other", "points"),
    [
        ({"student.layers": (1, 2)}, [(1, 0, 8), (1, 1, 8), (1, 1, 16), (2, 0, 8), (2, 1, 8), (2, 1, 16)]),
        ({"references.memory": (0, 4)}, [(0, 0, 8), (0, 1, 8), (0, 1, 16), (4, 0, 8), (4, 1, 8), (4, 1, 16)]),
    ],
)
def test_a_grid_ends_when_all_of_it_was_tried(
    tmp_path: Path, other: dict[str, Any], points: list[tuple[int, ...]]
) -> None:
    search = one_objective(tmp_path)
    space = {**other, "references.count": (0, 1), "references.max_length": (8, 16)}
    search = search.model_copy(update={"space": space, "look": Look(algorithm="grid", trials=100)})
    ledger = ledger_of(search)
    found = []
    while trial := ledger.next():
        found.append(tuple(trial.point.values()))
    # Without references their length makes no difference, whether or not there is a memory.
    assert found == points


def test_limits_keep_shapes_out(tmp_path: Path) -> None:
    search = one_objective(tmp_path, trials=30, algorithm="random")
    search = search.model_copy(update={"limits": search.limits.model_copy(update={"parameters": 1_600_000})})
    ledger = ledger_of(search)
    while trial := ledger.next():
        ledger.scored(trial.number, 1.0, {"accuracy": 0.5})
        assert ledger.trials[trial.number].figures["parameters"] <= 1_600_000
    assert {trial.point["student.hidden"] for trial in ledger.trials.values()} == {24, 48}


def test_halving_sees_earlier_trials_again(tmp_path: Path) -> None:
    search = search_of(tmp_path, tmp_path / "run", ["score"], rungs=[0.5])
    ledger = ledger_of(search)
    for _ in range(3):
        ledger.next()
    ledger.scored(1, 0.5, {"accuracy": 0.4})
    ledger.ended(1)
    ledger.scored(2, 0.5, {"accuracy": 0.6})
    ledger.scored(2, 1.0, {"accuracy": 0.7})
    ledger.ended(2)
    assert [trial.state for trial in ledger.trials.values()] == ["stopped", "finished", "waiting"]
    again = ledger_of(search)
    assert [again.next().number for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
    again.began(1)
    again.scored(1, 0.5, {"accuracy": 0.4})
    again.ended(1)
    assert again.trials == ledger.trials


def test_a_search_in_which_everything_fails_is_ended(tmp_path: Path) -> None:
    ledger = ledger_of(one_objective(tmp_path))
    for number in (1, 2, 3):
        ledger.require_hope()
        ledger.next()
        ledger.ended(number, f"trial {number} broke")
    with pytest.raises(RefusedError, match=r"the first 3 trials failed.*trial 0001: trial 1 broke"):
        ledger.require_hope()
    assert trial_folder(tmp_path / "run", 1).name == "0001"
