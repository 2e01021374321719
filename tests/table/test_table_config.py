"""Table files: what is read, and what is refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tables import table_file
from tiny import tiny_values

from refbert_dist.config import SYSTEMS, to_yaml
from refbert_dist.config.reference import table
from refbert_dist.errors import UserError
from refbert_dist.table import run
from refbert_dist.table.config import Choose, Table, is_table_file, load_table, stored_table


def test_a_cell_is_an_experiment_with_the_students_that_have_its_seed(tmp_path: Path) -> None:
    seeds = {"tinybert": [3, 0], "default": 2}
    changes = {"tasks": {"MRPC": {}, "short": {"task.name": "MRPC", "task": {"max_train": 20}}}, "seeds": seeds}
    found = load_table(table_file(tmp_path, **changes))
    assert [cell.name for cell in found.cells] == [
        *("MRPC-seed0", "short-seed0", "MRPC-seed1", "short-seed1", "MRPC-seed3", "short-seed3")
    ]
    assert [cell.experiment.systems for cell in found.cells][::2] == [
        *(("refbert", "tinybert"), ("refbert",), ("tinybert",))
    ]
    last = found.cells[-1].experiment
    assert (last.seed, last.distill.seed) == (1, 3)
    assert last.run.dir == tmp_path / "run" / "cells" / "short-seed3"
    assert last.task and (last.task.name, last.task.max_train, last.task.max_length) == ("MRPC", 20, 64)
    assert last.task.path == str(tmp_path.parent / "tables" / "glue" / "MRPC")


def test_overrides_are_of_the_table_or_of_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path)))
    path = table_file(tmp_path, experiment={"file": "base.yaml"}, tasks={"MRPC": {"task.max_train": 9}, "short": None})
    overrides = ["tasks.short.task.name=MRPC", "tasks.MRPC.task.path=elsewhere", "data=glue", "student.layers=1"]
    found = load_table(path, [*overrides, "run.dir=runs/other", "seeds=[4]", "systems=[tinybert]", "csv=all.csv"])
    sections = {name: exp.task for name, exp in found.experiments.items()}
    assert {name: task and (task.path, task.max_train) for name, task in sections.items()} == {
        "MRPC": ("elsewhere", 9),
        "short": ("glue/MRPC", None),
    }
    assert [cell.seed for cell in found.cells] == [4, 4]
    assert found.cells[0].experiment.student.layers == 1
    assert (found.run_dir, found.csv_path, found.title) == (Path("runs/other"), Path("all.csv"), "small")


def test_the_table_in_configs_has_controls_and_variants_in_three_of_five_seeds() -> None:
    found = load_table(Path(__file__).parents[2] / "configs" / "glue-small.yaml", ["data=GLUE"])
    systems = [len(cell.experiment.systems) for cell in found.cells if cell.variant is None]
    assert systems == 12 * [len(SYSTEMS)] + 8 * [2]
    assert len(found.cells) - len(systems) == 12 * len(found.variants)
    assert {exp.task and exp.task.path for exp in found.experiments.values()} == {
        f"GLUE/{task}" for task in found.tasks
    }


def test_a_table_has_tasks_and_an_experiment_has_one(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path)))
    assert is_table_file(table_file(tmp_path))
    assert not is_table_file(tmp_path / "exp.yaml")


def test_the_stored_table_is_the_same_table_wherever_it_lies(tmp_path: Path) -> None:
    found = load_table(table_file(tmp_path))
    run.begin(found)
    assert to_yaml(stored_table(tmp_path / "run")) == to_yaml(found)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert stored_table(tmp_path / "moved").run_dir == tmp_path / "moved"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {}}, "tasks is {}"),
        ({"tasks": {"MRCP": {}}}, "tasks.MRCP: task.name is 'MRCP', not one of .*; did you mean 'MRPC'"),
        ({"tasks": {"MR/PC": {"task.name": "MRPC"}}}, "tasks names 'MR/PC', which cannot name a folder"),
        ({"tasks": {"MRPC": {"task": "glue/MRPC"}}}, "tasks.MRPC.task is 'glue/MRPC', not a section"),
        ({"tasks": {"MRPC": {"student.layesr": 1}}}, "tasks.MRPC: student.layesr is not a known key; did you mean"),
        ({"tasks": {"MRPC": {"task.path": "/no/such/folder"}}}, "tasks.MRPC: task.path is '/no/such/folder'"),
        ({"tasks": {"MRPC": {"seed": 3}}}, "tasks.MRPC sets seed, which all cells share"),
        ({"tasks": {"MRPC": {"run.dir": "here"}}}, "tasks.MRPC sets run, which all cells share"),
        ({"tasks": {"MRPC": {"distill.seed": 3}}}, "tasks.MRPC sets distill.seed, which differs from cell to cell"),
        ({"tasks": {"MRPC": {}, "again": {"task.name": "MRPC"}}}, "tasks.again is the same as tasks.MRPC"),
        ({"data": None}, "tasks.MRPC has no task.path; give it one, or data"),
        ({"seeds": 0}, "seeds is 0; give a number of seeds, 1 at least, or a list of different ones"),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\]"),
        ({"seeds": {"default": -1}}, "seeds.default is -1"),
        ({"seeds": {"default": True}}, "seeds.default is True"),
        ({"seeds": {"refbret": 2, "default": 1}}, "seeds names 'refbret', .*; did you mean 'refbert'"),
        ({"seeds": {"refbert": 2}}, "seeds has none for tinybert; add seeds.tinybert or seeds.default"),
        ({"variants": {"a b": {}}}, "variants names 'a b', which cannot name a folder"),
        ({"variants": {"random": {}}}, "variants names 'random', which seeds would take for something else"),
        (
            {"variants": {"deep": {"student.layers": 3}}},
            "variants.deep sets student, .*; a variant may set fields of ref",
        ),
        ({"variants": {"k": {"references.cuont": 3}}}, "variants.k: references.cuont is not a known key; did you mean"),
        (
            {"variants": {"k": {"references.count": 0}}},
            "variants.k has no references and would be TinyBERT; set references.count or references.memory",
        ),
        ({"variants": {"plain": {"references.count": 2}}}, "variants.plain is the same as the experiment itself"),
        ({"variants": {"a": {"references.count": 3}, "b": {"references.count": 3}}}, "variants.b is the same as var"),
        (
            {"variants": {"k": {"references.count": 3}}, "seeds": {"k": [7], "default": 1}},
            "seeds has 7 for k, which none",
        ),
        ({"variants": {"gate": {"references.count": 3}}, "seeds": {"gaet": 1, "default": 1}}, "did you mean 'gate'"),
        ({"experiment": {"file": "none.yaml"}}, "none.yaml does not exist"),
        ({"experiment": []}, r"experiment is \[\]"),
        ({"task": {"MRPC": {}}}, "task is not a known key; did you mean 'tasks'"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run.check(load_table(table_file(tmp_path, **changes)))
    assert not (tmp_path / "run").exists()


def test_a_control_whose_seed_no_other_has_is_refused(tmp_path: Path) -> None:
    path = table_file(tmp_path, seeds={"random": 3, "default": 2})
    with pytest.raises(UserError, match="seeds has 2 for random, which none of refbert, tinybert has"):
        load_table(path, ["systems=[refbert,random,tinybert]"])
    found = load_table(path, ["systems=[refbert,random,tinybert]", "seeds={refbert: [0], default: 2}"])
    assert found.cells[1].experiment.systems == ("tinybert", "random")


def test_a_variant_is_a_cell_of_its_own_with_its_seeds(tmp_path: Path) -> None:
    variants = {"four": {"references.count": 4}, "gated": {"references": {"gate": "token"}}}
    seeds = {"four": [1], "default": 2}
    found = load_table(table_file(tmp_path, variants=variants, seeds=seeds), ["systems=[refbert,tinybert,random]"])
    assert [(cell.name, len(cell.experiment.systems)) for cell in found.cells] == [
        *(("MRPC-seed0", 3), ("MRPC-seed0-gated", 1), ("MRPC-seed1", 3), ("MRPC-seed1-four", 1)),
        ("MRPC-seed1-gated", 1),
    ]
    four, gated = (cell.experiment for cell in found.cells[-2:])
    assert (four.references.count, four.references.gate, four.distill.seed) == (4, "none", 1)
    assert (gated.references.count, gated.references.gate, gated.systems) == (2, "token", ("refbert",))
    assert four.run.dir == tmp_path / "run" / "cells" / "MRPC-seed1-four"


def test_a_variant_may_have_a_memory_alone(tmp_path: Path) -> None:
    variants = {"room": {"references.count": 0, "references.memory": 4}}
    found = load_table(table_file(tmp_path, variants=variants))
    room = next(cell.experiment for cell in found.cells if cell.name == "MRPC-seed0-room")
    assert room.trained_systems() == ("refbert",) and room.reads("refbert") and not room.references.count


def test_a_directory_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path)))
    with pytest.raises(UserError, match="holds a run or a search"):
        run.begin(load_table(table_file(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choose": {"rates": [1]}}, "choose.rates"),
        ({"choose": {"rates": [1, 2, 1]}}, "choose.rates is .*which has one twice; name each once"),
        ({"choose": {"rates": [1, 2], "seeds": 0}}, "choose.seeds is 0; give a number of seeds"),
        (
            {"choose": {"rates": [1, 2]}, "tasks": {"MRPC": {"task.held_out": 0.2}}},
            "choose is given but tasks.MRPC has a task.held_out, which choose sets itself; take one of them away",
        ),
        ({"rate_factors": {"MRCP": {}}}, "rate_factors names 'MRCP', which is not among the table's tasks"),
        ({"rate_factors": {"MRPC": {"refbrt": 2}}}, "rate_factors.MRPC names 'refbrt', .* did you mean"),
    ],
)
def test_wrong_choices_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_table(table_file(tmp_path, **changes))


def test_every_field_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    for expected in (table(Table), table(Choose, prefix="choose.")):
        assert expected in page, f"put this table into docs/tables.md:\n{expected}"
