"""The CSV file of a table: what stands in it stays, and tells what it is of."""

from dataclasses import replace
from pathlib import Path

import pytest
from tables import SKILLS, fabricate, table_file
from tiny import tiny_experiment

from refbert_dist.errors import UserError
from refbert_dist.table.config import load_table
from refbert_dist.table.rows import COLUMNS, Row, add_rows, own_rows, read_rows, settings_key

ROW = Row(
    title="small",
    task="MRPC",
    system="refbert",
    seed=0,
    metric="accuracy",
    score=0.75,
    n=408,
    references=1,
    params=7_000_000,
    steps=400,
    samples=12_800,
    seconds=61.5,
    gflop=None,
    teacher="package:minilm",
    student="3 x 192",
    corpus="",
    train=3668,
    settings="0123456789abcdef",
    data="",
    commit="",
)


VARIED = ("teacher", "refbert", "refbert:four")


def test_rows_are_read_as_they_were_added(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "t.csv", replace(ROW, task='a "quoted", task', seed=1, gflop=12.5)
    assert add_rows(path, [ROW]) == add_rows(path, [other]) == []
    assert read_rows(path) == [ROW, other]
    assert path.read_text().splitlines()[0].split(",") == list(COLUMNS)


def test_the_same_score_again_changes_nothing_and_another_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    add_rows(path, [ROW])
    before = path.read_bytes()
    assert add_rows(path, [replace(ROW, seconds=5.0, commit="abc")]) == []
    (conflict,) = add_rows(path, [replace(ROW, score=0.76)])
    assert "accuracy of refbert on MRPC, seed 0: 0.75 stands there" in conflict and "0.76 came out now" in conflict
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [{"title": "b"}, {"task": "CoLA"}, {"system": "own"}, {"seed": 1}, {"metric": "f1"}, {"settings": "fedc"}],
)
def test_rows_of_something_else_stand_beside_each_other(tmp_path: Path, changes: dict[str, str]) -> None:
    path = tmp_path / "t.csv"
    assert add_rows(path, [ROW, replace(ROW, score=0.1, **changes)]) == []  # type: ignore[arg-type]
    assert len(read_rows(path)) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "whose first line is not that of a table's rows"),
        (b"name,score\n", "whose first line is not that of a table's rows; name another file"),
        (",".join(COLUMNS).encode() + b"\nsmall,MRPC\n", "whose line 2 is not a row of a table"),
        (b"\xff\xfe", "which cannot be read as text"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        add_rows(path, [ROW])
    assert path.read_bytes() == content


def test_rows_of_other_settings_under_the_same_title_are_refused(tmp_path: Path) -> None:
    table = fabricate(table_file(tmp_path))
    assert {row.title for row in own_rows(table)} == {"small"}
    path = table_file(tmp_path)
    with pytest.raises(UserError, match="rows of MRPC under the title 'small' were made with other settings"):
        own_rows(load_table(path, ["student.layers=1"]))
    assert own_rows(load_table(path, ["student.layers=1", "title=deeper"])) == []


def test_a_variant_has_settings_of_its_own(tmp_path: Path) -> None:
    path = table_file(tmp_path, variants={"four": {"references.count": 4}})
    table = fabricate(path, skills={**SKILLS, "four": 0.9})
    settings = {system: {row.settings for row in own_rows(table) if row.system == system} for system in VARIED}
    assert all(len(found) == 1 for found in settings.values())
    assert settings["refbert"] == settings["teacher"] != settings["refbert:four"]
    changed = load_table(path, ["variants={four: {references.count: 4, references.gate: bias}}"])
    with pytest.raises(UserError, match="rows of MRPC, variant four, under the title 'small' were made with other"):
        own_rows(changed)


@pytest.mark.parametrize(
    ("override", "counts"),
    [
        ("student.layers=1", True),
        ("distill.general.until=0.5", True),
        ("seed=2", True),
        ("corpus.path=/elsewhere/other.txt", True),
        ("distill.seed=3", False),
        ("systems=[tinybert]", False),
        ("task.path=/elsewhere", False),
        ("run.dir=/elsewhere", False),
        ("launch.processes=4", False),
        ("evaluate.latency_repeats=0", False),
        ("references.label=none", False),
    ],
)
def test_what_decides_a_score_is_in_the_fingerprint(tmp_path: Path, override: str, counts: bool) -> None:
    same = settings_key(tiny_experiment(tmp_path), "refbert") == settings_key(
        tiny_experiment(tmp_path, override), "refbert"
    )
    assert same is not counts


def test_a_rate_of_its_own_counts_for_its_system_alone(tmp_path: Path) -> None:
    usual = tiny_experiment(tmp_path)
    changed = tiny_experiment(tmp_path, "distill.rate_factors={refbert: 2, tinybert: 1}")
    assert settings_key(usual, "refbert") != settings_key(changed, "refbert")
    for other in ("tinybert", "teacher", "random"):
        assert settings_key(usual, other) == settings_key(changed, other)


def test_a_folder_that_was_moved_has_the_fingerprint_that_it_had(tmp_path: Path) -> None:
    here, there = (
        settings_key(
            tiny_experiment(tmp_path, f"corpus.path={folder}/wiki.txt", f"teacher.model={folder}/bert"), "refbert"
        )
        for folder in ("a", "b/c")
    )
    assert here == there
