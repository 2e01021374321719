"""What shapes cost, against the models themselves."""

from pathlib import Path
from typing import Any

import pytest
from searches import search_of
from tiny import tiny_experiment

from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.stages.students import student_config
from tune.config import Limits
from tune.figures import Gate, excess, shape_figures, timed_shapes


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["references.count=0"],
        ["references.tie_projections=true", "student.layers=3"],
        ["student.hidden=48", "student.intermediate=100", "references.count=1"],
        ["references.normalize=false", "references.gate=bias"],
        ["references.gate=token"],
        ["references.memory=5"],
        ["references.count=0", "references.memory=5"],
    ],
)
def test_parameters_are_those_of_the_model(tmp_path: Path, overrides: list[str]) -> None:
    exp = tiny_experiment(tmp_path, "systems=[refbert]", *overrides)
    (system,) = exp.trained_systems()
    model = RefBertForSequenceClassification(student_config(exp, system, num_labels=2))
    assert shape_figures(exp)["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_operations_of_a_text(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "student.layers=3", "references.count=2", "references.max_length=10")
    h, i, n = 24, 48, 64
    layer = n * (8 * h * h + 4 * h * i + 4 * n * h)
    assert shape_figures(exp)["gflops"] == pytest.approx((3 * layer + 4 * n * 20 * h) / 1e9)
    exp = tiny_experiment(tmp_path, "student.layers=3", "references.count=0", "references.memory=7")
    assert shape_figures(exp)["gflops"] == pytest.approx((3 * layer + 4 * n * 7 * h) / 1e9)


def test_limits() -> None:
    figures = {"parameters": 10.0, "gflops": 0.5}
    assert excess(figures, Limits()) is None
    assert excess(figures, Limits(parameters=10, gflops=0.5, latency_ms=1.0)) is None, (
        "what is not known rules nothing out"
    )
    assert excess(figures, Limits(gflops=0.4)) == "gflops 0.5 is above limits.gflops=0.4"


def test_each_shape_is_timed_once(tmp_path: Path) -> None:
    search = search_of(tmp_path, tmp_path / "run")
    space: dict[str, Any] = {
        "student.layers": (1, 2),
        "references.count": (0, 1),
        "references.max_length": (8, 16),
        "distill.temperature": (1.0, 2.0),
    }
    found = timed_shapes(search.model_copy(update={"space": space}))
    assert list(found) == [
        *("1 x 24 / 4, 48", "1 x 24 / 4, 48, reads 1 x 8", "1 x 24 / 4, 48, reads 1 x 16"),
        *("2 x 24 / 4, 48", "2 x 24 / 4, 48, reads 1 x 8", "2 x 24 / 4, 48, reads 1 x 16"),
    ]
    assert all(exp.student.layers == int(name[0]) for name, exp in found.items())
    remembering: dict[str, Any] = {"references.count": (0, 1), "references.memory": (0, 4)}
    assert list(timed_shapes(search.model_copy(update={"space": remembering}))) == [
        *("2 x 24 / 4, 48", "2 x 24 / 4, 48, memory 4"),
        *("2 x 24 / 4, 48, reads 1 x 16", "2 x 24 / 4, 48, reads 1 x 16, memory 4"),
    ]
    mapped: dict[str, Any] = {"student.layers": (1, 2), "distill.layer_map": ((4,), (2, 4))}
    assert len(timed_shapes(search.model_copy(update={"space": mapped}))) == 2
    tight = search.model_copy(update={"space": space, "limits": Limits(gflops=0.0001)})
    assert timed_shapes(tight) == {}


def test_a_latency_can_rule_a_shape_out(tmp_path: Path) -> None:
    search = search_of(tmp_path, tmp_path / "run").model_copy(update={"limits": Limits(latency_ms=2.0)})
    gate = Gate(search, {"1 x 24 / 4, 48": 1.5, "2 x 24 / 4, 48": 2.5})
    slow = {"student.layers": 2, "student.hidden": 24, "references.count": 0}
    assert gate(slow) == "latency_ms 2.5 is above limits.latency_ms=2"
    assert gate({**slow, "student.layers": 1}) is None
