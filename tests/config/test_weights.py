from pathlib import Path

import pytest

from refbert_dist.config import Experiment, LossWeights, load_experiment, parse_experiment, to_yaml
from refbert_dist.config.weights import WeightSchedule
from refbert_dist.errors import UserError

MINIMAL = {"teacher": {"model": "some/teacher"}, "corpus": {"path": "text.txt"}}
LINE = {"start": 3, "end": 1, "over": 0.5}


def weights(**given: object) -> LossWeights:
    return parse_experiment({**MINIMAL, "distill": {"weights": given}}).distill.weights


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 3.0), (0.125, 2.5), (0.25, 2.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
)
def test_a_weight_goes_in_a_line_and_stays(fraction: float, expected: float) -> None:
    found = weights(attention=LINE, hidden=0.7).at(fraction)
    assert found == {
        "embedding": 1.0,
        "attention": pytest.approx(expected),
        "hidden": 0.7,
        "prediction": 1.0,
        "labels": 0.0,
        "mlm": 0.0,
    }


def test_it_may_rise_and_takes_all_steps_by_default() -> None:
    rising = weights(hidden={"start": 0, "end": 2})
    assert [rising.at(fraction)["hidden"] for fraction in (0, 0.5, 1)] == [0, 1, 2]


@pytest.mark.parametrize(("start", "end", "counts"), [(0, 1, True), (1, 0, True), (0, 0, False)])
def test_a_term_counts_if_it_does_at_any_time(start: float, end: float, counts: bool) -> None:
    assert bool(WeightSchedule(start=start, end=end)) is counts


def test_schedules_that_leave_nothing_to_learn_are_refused() -> None:
    nothing = {"start": 0, "end": 0}
    with pytest.raises(UserError, match="are all 0"):
        weights(embedding=nothing, attention=0, hidden=nothing, mlm=1)


def test_a_schedule_comes_back_from_yaml_and_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text(to_yaml(parse_experiment({**MINIMAL, "distill": {"weights": {"attention": LINE}}})))
    exp: Experiment = load_experiment(path, ["distill.weights.attention.over=0.25"])
    assert exp.distill.weights.attention == WeightSchedule(start=3, end=1, over=0.25)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**LINE, "over": 0}, r"^distill\.weights\.attention\.over is 0: input should be greater than 0$"),
        (
            {**LINE, "over": 1.5},
            r"^distill\.weights\.attention\.over is 1\.5: input should be less than or equal to 1$",
        ),
        ({**LINE, "start": -1}, r"^distill\.weights\.attention\.start is -1: "),
        ({"start": 1}, r"^distill\.weights\.attention\.end is missing"),
        ({**LINE, "begin": 1}, r"^distill\.weights\.attention\.begin is not a known key"),
        (-1, r"^distill\.weights\.attention is -1: input should be greater than or equal to 0$"),
        ("much", r"^distill\.weights\.attention is 'much': input should be a valid number"),
    ],
)
def test_a_wrong_weight_is_one_sentence(given: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        weights(attention=given)
