"""The report of a search, from its first moment to its end."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pages import Page, draw
from searches import fabricate, search_of

from tune.plots import Scale
from tune.records import State, read_trials
from tune.report import write_search_report

MANY: list[State] = [*["finished"] * 15, "failed", "running", "waiting"]


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where teacher and task lie, made once."""
    return tmp_path_factory.getbasetemp() / "searches"


def report(
    root: Path,
    folder: Path,
    states: Sequence[State],
    objectives: Sequence[str] = ("score", "latency_ms"),
    rungs: Sequence[float] = (),
) -> Path:
    search = search_of(root, folder, objectives, rungs)
    return write_search_report(fabricate(search, states))


def test_the_front_is_told_apart_and_its_knee_marked(root: Path, tmp_path: Path) -> None:
    path = report(root, tmp_path, MANY)
    found = Page(path)
    front = found.table("trial", "student.layers")
    scores = [float(row[5]) for row in front]
    times = [float(row[6]) for row in front]
    assert len(front) > 2
    assert scores == sorted(scores, reverse=True) and times == sorted(times, reverse=True)
    marked = [row for row in found.marked if row in front]
    assert len(marked) == 1 and f"the knee, trial {marked[0][0]}" in found.text
    assert {row[0] for row in found.marked if row not in front} == {row[0] for row in front}


def test_every_trial_has_a_row_and_every_failure_its_reason(root: Path, tmp_path: Path) -> None:
    path = report(root, tmp_path, MANY)
    found, trials = Page(path), read_trials(tmp_path)
    rows = found.table("trial", "state")
    assert [row[0] for row in rows] == [str(trial.number) for trial in trials]
    assert [row[1] for row in rows] == MANY
    assert rows[0][6:8] == [f"{trials[0].figures[name]:.4g}" for name in ("accuracy", "latency_ms")]
    assert rows[-1][6:] == ["-"] * 6
    assert found.table("trial", "why it failed") == [["16", trials[15].error]]


def test_what_is_searched_and_how_far_it_is(root: Path, tmp_path: Path) -> None:
    found = Page(report(root, tmp_path, MANY))
    assert found.table("trials at most") == [["20", "18", "15", "0", "1", "1", "1"]]
    dimensions = dict(found.table("dimension", "values"))
    assert dimensions["student.hidden"] == "24, 48, 96"
    assert dimensions["distill.general.learning_rate"] == "0.0001 to 0.01, evenly over orders of magnitude"
    assert "parameters up to 900,000" in found.text


def test_the_teachers_work_is_counted(root: Path, tmp_path: Path) -> None:
    found = Page(report(root, tmp_path, MANY))
    assert found.table("who") == [["cache-general", "1,370"], ["cache-task", "480"], ["all trials together", "360"]]


@pytest.mark.parametrize(
    ("objectives", "rungs", "states", "charts"),
    [
        # Trade-offs, parallel coordinates, importance by each objective, rungs, losses of the trials, of the teacher.
        (("score",), (), MANY, 1 + 1 + 1 + 0 + 1 + 1),
        (("score", "latency_ms"), (0.25, 0.5), [*MANY, "stopped", "stopped"], 1 + 1 + 2 + 1 + 1 + 1),
        (("score", "latency_ms", "gflops"), (), MANY, 2 + 1 + 3 + 0 + 1 + 1),
        (("parameters",), (), MANY, 0 + 1 + 1 + 0 + 1 + 1),
        (("score", "latency_ms"), (), ["finished"] * 3, 1 + 1 + 0 + 0 + 1 + 1),
        (("score", "latency_ms"), (), ["finished"], 1 + 1 + 0 + 0 + 1 + 1),
        (("score", "latency_ms"), (), ["running", "waiting"], 0 + 0 + 0 + 0 + 1 + 1),
        (("score", "latency_ms"), (), ["failed", "failed"], 1),
        (("score", "latency_ms"), (), [], 1),
    ],
)
def test_there_is_a_chart_for_all_that_is_known(
    root: Path, tmp_path: Path, objectives: Sequence[str], rungs: Sequence[float], states: Sequence[State], charts: int
) -> None:
    assert Page(report(root, tmp_path, states, objectives, rungs)).charts == charts


@pytest.mark.browser
def test_every_chart_is_drawn_without_a_network_and_asks_for_nothing(root: Path, tmp_path: Path) -> None:
    path = report(root, tmp_path, [*MANY, "stopped"], ("score", "latency_ms"), (0.25,))
    found, drawn = Page(path), draw(path)
    assert drawn.complaints == []
    assert found.charts == drawn.dom.count('class="plot-container') == 7
    assert [reference for reference in found.references if not reference.startswith("#")] == []
    # The front and 16 scored trials; 15 finished ones; rungs of 16; losses of 17 that began, and the teacher's.
    assert drawn.dom.count('class="trace scatter') == 17 + 15 + 16 + 17 + 1
    assert drawn.dom.count('class="trace bars') == 2
    for words in ("latency_ms", "student", "share of the variance that it explains", "Pareto front", "k=0", "k=2"):
        assert f">{words}<" in drawn.dom


@pytest.mark.parametrize(
    ("scale", "value", "height"),
    [
        (Scale("a", (1, 2, 4)), 2, 0.5),
        (Scale("a", ("bm25", "dense")), "dense", 1.0),
        (Scale("a", ([1, 2], [2, 4])), [1, 2], 0.0),
        (Scale("a", (7,)), 7, 0.5),
        (Scale("a", (), 0.0, 4.0), 1.0, 0.25),
        (Scale("a", (), 1e-4, 1e-2, log=True), 1e-3, 0.5),
        (Scale("a", (), 0.7, 0.7), 0.7, 0.5),
    ],
)
def test_values_lie_on_their_axis(scale: Scale, value: object, height: float) -> None:
    assert scale.height(value) == pytest.approx(height)
