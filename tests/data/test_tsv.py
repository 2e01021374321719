"""GLUE's original layouts, and what is wrong with a file."""

from pathlib import Path

import glue_layouts
import pytest
from glue_layouts import LABELLED, TEST

from refbert_dist.data.glue import task_spec
from refbert_dist.data.tsv import read_tsv
from refbert_dist.errors import UserError


def write(folder: Path, *lines: str, name: str = "train.tsv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fault(task: str, path: Path, labelled: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        read_tsv(path, task_spec(task), "task.the_file", labelled)
    words = str(caught.value)
    assert "\n" not in words and words.startswith(f"task.the_file: {path}")
    return words


@pytest.mark.parametrize("name", glue_layouts.NAMES)
def test_every_file_of_every_task(tmp_path: Path, name: str) -> None:
    glue_layouts.glue_folder(tmp_path, name)
    for part, (given, _) in glue_layouts.files(name).items():
        labelled = part.startswith(("train", "dev"))
        found = read_tsv(tmp_path / f"{part}.tsv", task_spec(name), "task.x_file", labelled)
        labels = [row[2] if labelled else None for row in given]
        assert found.broken == 0
        assert [row[:2] for row in found.rows] == [row[:2] for row in given]
        assert [row[2] for row in found.rows] == (pytest.approx(labels) if labelled else labels)


def test_the_microsoft_files_of_mrpc(tmp_path: Path) -> None:
    # A byte order mark, carriage returns, and a test file that has labels and no index.
    header, rows = LABELLED["MRPC"][0], ['1\t702876\t702977\tHe said "yes.\tHe agreed.', "0\t21\t22\tA b c.\tX y z."]
    path = tmp_path / "msr_paraphrase_train.txt"
    path.write_bytes(("\ufeff" + "\r\n".join([str(header), *rows]) + "\r\n").encode())
    expected = [('He said "yes.', "He agreed.", 1.0), ("A b c.", "X y z.", 0.0)]
    assert read_tsv(path, task_spec("MRPC"), "f", True).rows == expected
    assert read_tsv(path, task_spec("MRPC"), "f", False).rows == [(*row[:2], None) for row in expected]


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [f"{row}\t1\t2\tIs it {row}?\tWas it {row}?\t{row % 2}" for row in range(4)]
    header = str(LABELLED["QQP"][0])
    # A line end within a question makes two broken rows, and an empty question is one.
    broken = ["9\t1\t2\tHow do I", "begin?\tHow to begin?\t0", "8\t1\t2\tHow can I?\t\t0"]
    path = write(tmp_path, header, *good[:2], *broken, *good[2:])
    found = read_tsv(path, task_spec("QQP"), "f", True)
    assert (len(found.rows), found.broken) == (4, 3)
    assert found.rows[3] == ("Is it 3?", "Was it 3?", 1.0)
    many = write(tmp_path, header, *good, *broken * 34)
    assert "line 106 has 3 tab-separated columns, not 6" in fault("QQP", many)


def test_other_tasks_have_no_broken_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a\t1\t\tb c", "a\t1\tb c")
    assert "line 2 has 3 tab-separated columns, not 4; CoLA has source, label" in fault("CoLA", path)
    assert "line 1 has an empty sentence" in fault("CoLA", write(tmp_path, "a\t1\t\t "))


def test_every_test_row_counts(tmp_path: Path) -> None:
    header = str(TEST["QQP"][0])
    rows = ["0\tHow?\tWhy?", "1\tWhat?\t", "2\tWho?\tWhom?"]
    # An empty question is answered, too, or all answers behind it would move up.
    assert read_tsv(write(tmp_path, header, *rows), task_spec("QQP"), "f", False).rows[1] == ("What?", "", None)
    gone = write(tmp_path, header, rows[0], rows[2])
    assert "line 3 has the index 2, but it is row 1 (counted from 0)" in fault("QQP", gone, labelled=False)
    cut = write(tmp_path, header, "0\tHow?")
    assert "line 2 has 2 tab-separated columns, not 3; QQP has id, question1, question2" in fault("QQP", cut, False)


def test_missing_header(tmp_path: Path) -> None:
    path = write(tmp_path, "1\t11\t12\tHe said.\tShe said.")
    assert "line 1 is not MRPC's header, it lacks '#1 String'" in fault("MRPC", path)
    cola = write(tmp_path, "gj04\t1\t\tThe sailors rode the breeze.")
    words = "line 1 is not CoLA's header in a test file, it lacks 'sentence'; its columns are index, sentence"
    assert words in fault("CoLA", cola, labelled=False)


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "yes", "nan", ""])
def test_label_out_of_range_for_classes(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, "a\t1\t\tb c", f"a\t{label}\t\tb c")
    assert f"line 2 has the label '{label}'; CoLA allows one of 0 to 1" in fault("CoLA", path)


@pytest.mark.parametrize("label", ["5.1", "-0.1", "inf", "high"])
def test_label_out_of_range_for_scores(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, str(LABELLED["STS-B"][0]), f"0\tg\tf\ty\to\ts\ts\tA.\tB.\t{label}")
    assert f"line 2 has the label '{label}'; STS-B allows a number from 0 to 5" in fault("STS-B", path)


@pytest.mark.parametrize("label", ["0", "-", "Entailment", ""])
def test_label_that_is_no_name(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, "index\tsentence1\tsentence2\tlabel", f"0\tA.\tB.\t{label}")
    assert f"line 2 has the label '{label}'; RTE allows one of entailment, not_entailment" in fault("RTE", path)


def test_no_rows_and_undecodable_bytes(tmp_path: Path) -> None:
    assert "holds no rows; give a file with labelled rows" in fault("MRPC", write(tmp_path, str(LABELLED["MRPC"][0])))
    path = tmp_path / "train.tsv"
    path.write_bytes(b"a\t1\t\tok\na\t1\t\t\xe9\n")
    assert "line 2 is not UTF-8" in fault("CoLA", path)
