"""A whole benchmark of tiny shapes. What it measures is checked by counting; how fast anything is, is not tested."""

import json
from typing import Any

import pytest
from pages import Page
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.config import BenchmarkConfig, Experiment
from refbert_dist.costs.work import Shape, forward, reading

WAYS = ("eager", "onnx-int8")
LENGTH, READ = 12, 16
SYSTEMS = ["teacher", "TinyBERT", "RefBERT k=0", "RefBERT k=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    exp = tiny_experiment(
        tmp_path_factory.mktemp("benchmark"),
        f"benchmark={{lengths: [{LENGTH}], batch_sizes: [3], reference_counts: [0, 2], ways: {list(WAYS)}, rounds: 2, "
        "pool_texts: 40}",
    )
    assert pipeline.run(exp, ["benchmark"]) == ["benchmark"]
    return exp


@pytest.fixture(scope="module")
def found(done: Experiment) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((done.run.dir / "benchmark" / "benchmark.json").read_text())
    return content


def test_every_system_is_measured_in_every_way(found: dict[str, Any]) -> None:
    for kind in ("network", "end_to_end"):
        assert [(row["system"], row["way"]) for row in found[kind]] == [
            (system, way) for way in WAYS for system in SYSTEMS
        ]
        for row in found[kind]:
            assert (row["batch"], row["length"]) == (3, LENGTH)
            assert 0 < row["p50_ms"] <= row["p95_ms"] and row["passes"] >= 2
            assert row["faster"]["least"] <= row["faster"]["median"] <= row["faster"]["most"]
            base = {"faster": "eager", "faster_than_same_way": row["way"]}
            for ratio, way in base.items():
                if (row["system"], row["way"]) == ("teacher", way):
                    assert row[ratio] == {"median": 1, "least": 1, "most": 1}
    assert [row["references"] for row in found["steps"]] == [2]
    assert all(found["steps"][0][step] > 0 for step in ("tokenise", "look up", "load", "predict"))
    assert list(found["task"]["systems"]) == ["teacher, padded", "teacher", "RefBERT, padded", "RefBERT"]
    assert found["texts"]["pool"] == 40 and found["texts"]["task_pool"] == 40


def test_operations_and_parameters_are_those_of_the_shapes(done: Experiment, found: dict[str, Any]) -> None:
    teacher = Shape(layers=4, hidden=32, heads=4, intermediate=64, embeddings=30522 + 96 + 2)
    student = Shape(layers=2, hidden=24, heads=4, intermediate=48, embeddings=30522 + 96 + 2)
    sizes = {row["system"]: row for row in found["sizes"]}
    assert list(sizes) == SYSTEMS
    for system, shape in (("teacher", teacher), ("TinyBERT", student)):
        heads = 2 * shape.hidden**2 + 2 * shape.hidden * 2  # pooler and classifier, of the first token alone
        counted = forward(shape, LENGTH, LENGTH).flops + heads
        assert sizes[system]["gflop"][str(LENGTH)] == pytest.approx(counted / 1e9, abs=1e-4)
        assert sizes[system]["parameters"] == shape.parameters + shape.hidden * (shape.hidden + 1) + 2 * (
            shape.hidden + 1
        )
    # References were projected before: what is left is that every token attends to them.
    assert sizes["RefBERT k=0"]["gflop"] == sizes["TinyBERT"]["gflop"]
    projecting = reading(student, 32, 0, 1, 2 * READ).flops
    added = reading(student, 32, LENGTH, 1, 2 * READ).flops - projecting
    more = sizes["RefBERT k=2"]["gflop"][str(LENGTH)] - sizes["TinyBERT"]["gflop"][str(LENGTH)]
    assert more == pytest.approx(added / 1e9, abs=2e-4)
    assert sizes["teacher"]["peak_bytes"] > sizes["teacher"]["bytes"]
    assert 0 < sizes["TinyBERT"]["onnx-int8_bytes"] < sizes["TinyBERT"]["bytes"]


def test_models_are_not_left_behind(done: Experiment) -> None:
    names = {path.name for path in (done.run.dir / "benchmark").iterdir()}
    assert names == {"benchmark.json", "benchmark.md", "benchmark.html"}


def test_it_is_not_measured_twice_unless_something_else_is_asked_for(done: Experiment) -> None:
    assert pipeline.run(done, ["benchmark"]) == []
    assert done.benchmark
    other = done.model_copy(update={"benchmark": BenchmarkConfig(**{**done.benchmark.model_dump(), "rounds": 3})})
    assert [stage.name for stage in pipeline.missing_stages(other, ["benchmark"])] == ["benchmark"]
    assert "benchmark" not in [stage.name for stage in pipeline.missing_stages(done)]


def test_the_tables_have_what_was_measured(done: Experiment, found: dict[str, Any]) -> None:
    words = (done.run.dir / "benchmark" / "benchmark.md").read_text()
    for heading in ("Size", "Network alone, eager", "From text to answer, onnx-int8", "Where RefBERT's time goes"):
        assert f"## {heading}\n" in words
    row = next(row for row in found["network"] if (row["system"], row["way"]) == ("TinyBERT", "onnx-int8"))
    assert f" ms {row['faster']['median']:.1f}x |" in words
    assert f"among {found['texts']['pool']} texts" in words
    assert all(
        line.count("|") == words.splitlines()[number - 1].count("|")
        for number, line in enumerate(words.splitlines())
        if line.startswith("| --- |")
    )


def test_the_page_has_the_tables_and_charts(done: Experiment) -> None:
    page = Page(done.run.dir / "benchmark" / "benchmark.html")
    assert page.charts == 2 and page.tables[0][0][:2] == ["system", "parameters"]
    assert {"Times faster", "Size", "At the task's own lengths"} <= set(page.headings)
    assert not [link for link in page.references if not link.startswith("#")]
