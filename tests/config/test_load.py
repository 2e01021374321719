from pathlib import Path

import pytest

from refbert_dist.config import OptimConfig, first_difference, load_experiment, parse_experiment, to_yaml
from refbert_dist.errors import UserError

MINIMAL = {"teacher": {"model": "some/teacher"}, "corpus": {"path": "text.txt"}}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sentence(data: dict) -> str:
    with pytest.raises(UserError) as caught:
        parse_experiment(data)
    return str(caught.value)


def test_defaults_are_the_published_student() -> None:
    student = parse_experiment(MINIMAL).student
    assert (student.layers, student.hidden, student.heads, student.intermediate) == (4, 312, 12, 1200)


def test_overrides_reach_nested_fields_and_are_typed(tmp_path: Path) -> None:
    path = written(tmp_path, "teacher: {model: t}\ncorpus: {path: c}\n")
    exp = load_experiment(path, ["student.layers=3", "distill.layer_map=[1, 2, 3]", "task.name=MRPC", "task.path=x"])
    assert exp.student.layers == 3
    assert exp.distill.layer_map == (1, 2, 3)
    assert exp.task is not None and exp.task.name == "MRPC"


def test_a_resolved_experiment_reads_back_equal(tmp_path: Path) -> None:
    exp = parse_experiment({**MINIMAL, "cache": {"layers": [1, 2]}})
    assert load_experiment(written(tmp_path, to_yaml(exp))) == exp


def test_a_section_given_in_part_keeps_the_rest_of_its_default() -> None:
    distill = parse_experiment({**MINIMAL, "distill": {"general": {"learning_rate": 1e-3}}}).distill
    assert (distill.general.epochs, distill.general.batch_size, distill.general.learning_rate) == (3, 256, 1e-3)
    by_steps = parse_experiment({**MINIMAL, "distill": {"general": {"steps": 5}}}).distill.general
    assert (by_steps.epochs, by_steps.steps, by_steps.batch_size) == (None, 5, 256)


def test_it_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        parse_experiment(MINIMAL).student.layers = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": {"layesr": 3}}, ["student.layesr", "did you mean 'layers'"]),
        ({"studnet": {}}, ["studnet", "did you mean 'student'"]),
        ({"student": {"layers": "three"}}, ["student.layers", "'three'", "integer"]),
        ({"student": {"layers": 0}}, ["student.layers", "0", "greater than 0"]),
        ({"student": {"hidden": 100, "heads": 12}}, ["student.hidden is 100", "set student.hidden=96"]),
        ({"student": {"hidden": 5, "heads": 12}}, ["student.hidden is 5", "set student.hidden=12"]),
        ({"student": 3}, ["student is 3", "not a section"]),
        ({"references": {"retriever": "none"}}, ["references.retriever", "references.count=0"]),
        ({"references": {"count": 4, "stored_count": 2}}, ["references.stored_count is 2", "at least 4"]),
        ({"distill": {"general": {"epochs": 1, "steps": 5}}}, ["distill.general.epochs is 1", "steps is 5"]),
        ({"distill": {"layer_map": [1, 2]}}, ["distill.layer_map names 2", "student.layers is 4"]),
        ({"teacher": {}}, ["teacher.model is missing"]),
        ({"corpus": None}, ["corpus and task are both missing"]),
        ({"systems": ["refbert", "refbert"]}, ["systems", "at most once"]),
        (
            {"references": {"stages": "general"}, "systems": ["refbert", "label"]},
            ["systems has 'label'", "references.stages=both"],
        ),
        (
            {"references": {"stages": "general", "label": "gold"}, "task": {"name": "RTE", "path": "RTE"}},
            ["references.label is 'gold'", "references.stages is 'general'"],
        ),
        (
            {"references": {"own_text": "each", "own_edits": 0.2}},
            ["references.own_text is 'each'", "own_edits is 0.2", "set one of them"],
        ),
        ({"engine": {"zero_stage": 7}}, ["engine.zero_stage", "7"]),
    ],
)
def test_bad_values_are_one_sentence_with_field_value_and_fix(change: dict, words: list[str]) -> None:
    message = sentence({**MINIMAL, **change})
    assert "\n" not in message
    for word in words:
        assert word in message


def test_several_faults_are_told_at_once() -> None:
    message = sentence({**MINIMAL, "student": {"layers": 0}, "seed": -1})
    assert "student.layers" in message and "seed" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("teacher: {model: [", ["not valid YAML", "line"]),
        ("- a\n- b\n", ["holds a list", "mapping"]),
    ],
)
def test_broken_files(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(written(tmp_path, text))
    assert all(word in str(caught.value) for word in words)


def test_missing_folder_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"teacher: {model: caf\xe9}\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


@pytest.mark.parametrize("override", ["student.layers", "=3", "seed.x=1", "student.layers=[1"])
def test_overrides_that_make_no_sense(tmp_path: Path, override: str) -> None:
    path = written(tmp_path, "seed: 1\nteacher: {model: t}\ncorpus: {path: c}\n")
    with pytest.raises(UserError) as caught:
        load_experiment(path, [override])
    assert override in str(caught.value)


def test_first_difference_names_the_field() -> None:
    one, other = parse_experiment(MINIMAL), parse_experiment({**MINIMAL, "student": {"layers": 3}})
    assert first_difference(one, other) == ("student.layers", 4, 3)
    assert first_difference(one, other, ignore=["student"]) is None
    assert first_difference(one, other, ignore=["student.layers"]) is None


def test_refbert_without_references_is_not_trained_twice() -> None:
    exp = parse_experiment({**MINIMAL, "references": {"count": 0}})
    assert exp.trained_systems() == ("tinybert",)
    assert parse_experiment(MINIMAL).trained_systems() == ("refbert", "tinybert")


def test_a_memory_is_refberts_in_the_stages_that_read_references() -> None:
    task = {"name": "MRPC", "path": "/data"}
    references = {"count": 0, "memory": 3, "stages": "task"}
    exp = parse_experiment(
        {**MINIMAL, "task": task, "references": references, "systems": ["tinybert", "refbert", "own"]}
    )
    assert exp.trained_systems() == ("refbert", "tinybert"), "without references, own would be refbert"
    assert exp.model_copy(update={"systems": ("own",)}).trained_systems() == ("refbert",)
    assert [exp.memory_size(system) for system in ("refbert", "tinybert")] == [3, 0]
    assert [exp.reads("refbert", stage) for stage in ("general", "task")] == [False, True]
    assert not exp.reads("tinybert") and not exp.reference_count("refbert")


@pytest.mark.parametrize(
    ("length", "samples", "expected"),
    [
        ({"steps": 7}, 3200, 7),
        ({"epochs": 3}, 350, 33),  # 11 batches of at most 32 an epoch
        ({"epochs": 0.5}, 350, 6),
        ({"epochs": 0.01}, 350, 1),
        ({"epochs": 2}, 5, 2),  # fewer samples than a batch
    ],
)
def test_the_budget_in_steps_or_epochs(length: dict, samples: int, expected: int) -> None:
    assert OptimConfig(**length).total_steps(samples) == expected
