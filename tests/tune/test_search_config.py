"""Search files: what is read, and what is refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_values

from refbert_dist.config.reference import table
from refbert_dist.config.section import Section
from refbert_dist.errors import RefusedError, UserError
from tune.best import choose
from tune.config import HELD_OUT, Halving, Limits, Look, Range, Search, TrialConfig, load_search
from tune.search import begin, check


def write(root: Path, **changes: Any) -> Path:
    """A search file over the tiny experiment, which lies beside it."""
    (root / "base.yaml").write_text(yaml.safe_dump(tiny_values(root)))
    search: dict[str, Any] = {"experiment": {"file": "base.yaml"}, "space": {"student.layers": [1, 2]}}
    path = root / "search.yaml"
    path.write_text(yaml.safe_dump({**search, **changes}))
    return path


def test_what_is_not_said_comes_from_the_experiment_file(tmp_path: Path) -> None:
    changes = {"file": "base.yaml", "student": {"hidden": 48}}
    search = load_search(write(tmp_path, experiment=changes), ["run.dir=/elsewhere", "look.trials=3"])
    assert (search.experiment.student.hidden, search.experiment.student.heads) == (48, 4)
    assert search.experiment.run.dir == Path("/elsewhere")
    assert search.look.trials == 3
    assert search.experiment.task is not None and search.experiment.task.held_out == HELD_OUT
    assert search.experiment.systems == ("refbert",)


def test_an_experiment_can_stand_in_the_search_file(tmp_path: Path) -> None:
    search = load_search(write(tmp_path, experiment=tiny_values(tmp_path)))
    assert search.experiment.references.count == 2


def test_between_whole_numbers_lie_whole_numbers(tmp_path: Path) -> None:
    space = {"student.hidden": {"low": 24, "high": 96}, "distill.temperature": {"low": 1, "high": 2}}
    found = load_search(write(tmp_path, space=space)).space
    steps = {name: dimension.step for name, dimension in found.items() if isinstance(dimension, Range)}
    assert steps == {"student.hidden": 1, "distill.temperature": None}


def test_the_stored_search_is_the_same_search(tmp_path: Path) -> None:
    search = load_search(
        write(tmp_path, space={"student.layers": [1, 2], "distill.temperature": {"low": 1, "high": 2}})
    )
    assert Search.model_validate(search.model_dump(mode="json")) == search


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, "space is {}"),
        ({"space": {"student.layers": []}}, r"space.student.layers is \[\]"),
        ({"space": {"student.layer": [1]}}, "space: student.layer is not a known key; did you mean 'layers'"),
        ({"space": {"student.layers": ["four"]}}, "space: student.layers is 'four'"),
        ({"space": {"student.layers": [0, 1]}}, "space: student.layers is 0"),
        ({"space": {"distill.temperature": {"low": 2, "high": 1}}}, "low is 2, not below high=1"),
        (
            {"space": {"student.hidden": {"low": 24, "high": 96, "log": True}}},
            "space.student.hidden asks for log, but the field takes whole numbers only",
        ),
        ({"space": {"task.max_length": [32, 64]}}, "space names task.max_length, which all trials share"),
        ({"space": {"distill.targets": ["cache", "online"]}}, "space names distill.targets"),
        (
            {"space": {"student.intermediate": [48], "student.intermediate_ratio": [2]}},
            "space names both student.intermediate_ratio and student.intermediate",
        ),
        (
            {"space": {"distill.temperature": {"low": 1, "high": 2}}, "look": {"algorithm": "grid"}},
            "space.distill.temperature is any number from 1 to 2, which a grid cannot go through",
        ),
        (
            {"space": {"student.intermediate_ratio": {"low": 1, "high": 4}}, "objectives": ["latency_ms"]},
            "is any number from 1 to 4, so that not all shapes can be timed beforehand; give it a step",
        ),
        ({"objectives": ["scor"]}, "objectives names 'scor', which no trial reports; .* did you mean 'score'"),
        ({"objectives": ["score", "accuracy"]}, "name each figure once"),
        ({"limits": {"parameters": 1000}}, "leave no student to train: of 2 points none may be tried, .*parameters"),
        ({"space": {"student.heads": [5, 7]}}, "leave no student to train: .* heads do not divide"),
        ({"halving": {"rungs": [0.5, 0.25]}}, "smallest first"),
        ({"experiment": {"file": "none.yaml"}}, "none.yaml does not exist"),
        ({"experiment": {"file": "base.yaml", "task": None}}, "experiment.task is missing"),
        (
            {"experiment": {"file": "base.yaml", "task": {"held_out": 0}}},
            "chosen by their score on dev",
        ),
        ({"experiment": {"file": "base.yaml", "corpus": None}, "halving": {"rungs": [0.5]}}, "without corpus lacks"),
        (
            {
                "experiment": {"file": "base.yaml", "references": {"stored_count": 2}},
                "space": {"references.count": [0, 4]},
            },
            "space.references.count goes up to 4, but experiment.references.stored_count is 2",
        ),
        (
            {"experiment": {"file": "base.yaml", "evaluate": {"latency_repeats": 0}}, "objectives": ["latency_ms"]},
            "experiment.evaluate.latency_repeats is 0",
        ),
    ],
)
def test_bad_searches_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(load_search(write(tmp_path, **changes)))


def test_a_run_directory_keeps_its_search(tmp_path: Path) -> None:
    path = write(tmp_path)
    begin(load_search(path))
    begin(load_search(path, ["look.trials=7", "trial.concurrent=1"]))
    with pytest.raises(UserError, match=r"another search: space\.student\.layers is \[1, 2\] there and \[1, 3\] here"):
        begin(load_search(write(tmp_path, space={"student.layers": [1, 3]})))


def test_the_winner_is_that_of_the_same_search(tmp_path: Path) -> None:
    begin(load_search(write(tmp_path)))
    with pytest.raises(UserError, match="another search: objectives"):
        choose(load_search(write(tmp_path, objectives=["parameters"])), None)
    with pytest.raises(RefusedError, match="has no finished trial to choose from"):
        choose(load_search(write(tmp_path)), None)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs ray, which is not installed; run pip install 'refbert-dist\[tune\]'"):
        load_search(path)


def test_an_ordinary_run_is_not_turned_into_a_search(tmp_path: Path) -> None:
    search = load_search(write(tmp_path))
    search.experiment.run.dir.mkdir()
    (search.experiment.run.dir / "experiment.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path)))
    with pytest.raises(UserError, match="holds another experiment"):
        begin(search)


@pytest.mark.parametrize(
    ("section", "prefix"),
    [
        (Search, ""),
        (Range, "space.FIELD."),
        (Limits, "limits."),
        (Look, "look."),
        (Halving, "halving."),
        (TrialConfig, "trial."),
    ],
)
def test_every_field_is_in_the_docs(section: type[Section], prefix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    expected = table(section, prefix=prefix)
    assert expected in page, f"put this table into docs/search.md:\n{expected}"
