"""What is said of a table, from cells that chance and a known skill have made."""

from pathlib import Path

import glue_layouts
import numpy as np
import pytest
from pages import Page, draw
from tables import SKILLS, fabricate, table_file

from refbert_dist.table import run
from refbert_dist.table.config import Table, load_table
from refbert_dist.table.page import write_table
from refbert_dist.table.rows import add_rows, own_rows
from refbert_dist.table.summary import AVERAGE, summarise
from refbert_dist.table.words import parts, verdicts

SEEDS = {"refbert": 3, "default": 2}
TASKS = {"MRPC": {}, "short": {"task": {"name": "MRPC", "max_train": 20}}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = table_file(tmp_path_factory.mktemp("table"), tasks=TASKS, seeds=SEEDS)
    return fabricate(path, "systems=[refbert,tinybert,random,zeros]")


def test_scores_are_means_over_seeds_of_the_means_of_a_tasks_metrics(table: Table) -> None:
    found = summarise(table)
    assert found.systems == ["teacher", "tinybert", "refbert", "random", "zeros"]
    assert found.students == found.systems[1:]
    rows = {
        (row.seed, row.metric): row.score for row in own_rows(table) if (row.task, row.system) == ("MRPC", "refbert")
    }
    by_seed = [(rows[seed, "accuracy"] + rows[seed, "f1"]) / 2 for seed in range(3)]
    score = found.score("MRPC", "refbert")
    assert score and score.mean == pytest.approx(np.mean(by_seed))
    assert score.deviation == pytest.approx(np.std(by_seed, ddof=1))
    teacher = found.score("MRPC", "teacher")
    assert teacher and len(teacher.points) == 1 and teacher.deviation is None


def test_differences_are_over_common_seeds_with_intervals(table: Table) -> None:
    found = summarise(table)
    by_task = found.difference("refbert", "tinybert")
    assert list(by_task) == ["MRPC", "short", AVERAGE]
    for task in ("MRPC", "short"):
        each = by_task[task]
        scores = found.by_task[task].by_member
        points = [scores["refbert", seed] - scores["tinybert", seed] for seed in range(2)]
        assert each.points == pytest.approx(points) and each.value == pytest.approx(np.mean(points))
        assert each.low is not None and each.low < each.value < (each.high or 0)
    average = by_task[AVERAGE]
    assert average.value == pytest.approx((by_task["MRPC"].value + by_task["short"].value) / 2)
    assert average.verdict == "helps"
    assert found.difference("random", "tinybert")[AVERAGE].verdict == "no difference shown"
    assert found.difference("zeros", "refbert")[AVERAGE].verdict == "hurts"


def test_ratios_are_of_averages(table: Table) -> None:
    found = summarise(table)
    gain, share = found.gain("refbert", "tinybert"), found.share("refbert")
    scores = found.by_task["MRPC"].by_member
    common = [np.mean([scores[system, seed] for seed in range(2)]) for system in ("refbert", "tinybert")]
    assert gain and gain.value == pytest.approx(common[0] / common[1] - 1, abs=0.03)
    average, teacher = found.average("refbert"), found.average("teacher")
    assert average and teacher and share
    assert share.value == pytest.approx(average / teacher)
    assert share.low is not None and share.low < share.value < (share.high or 0)


def test_another_system_changes_nothing_of_the_others(table: Table, tmp_path: Path) -> None:
    few = fabricate(table_file(tmp_path, tasks=TASKS, seeds=SEEDS), "systems=[refbert,tinybert]")
    many, alone = (summarise(each).difference("refbert", "tinybert") for each in (table, few))
    assert many == alone


def test_without_answers_there_are_means_and_no_intervals(tmp_path: Path) -> None:
    table = fabricate(table_file(tmp_path))
    for path in (tmp_path / "run" / "cells").glob("*/answers/tinybert.safetensors"):
        path.unlink()
    each = summarise(table).difference("refbert", "tinybert")["MRPC"]
    assert each.value > 0 and each.low is None and each.verdict == "not known"
    assert "not known on MRPC" in write_table(table)


def test_answers_that_do_not_give_the_score_in_the_file_are_not_used(tmp_path: Path) -> None:
    table = fabricate(table_file(tmp_path))
    text = table.csv_path.read_text()
    row = next(row for row in own_rows(table) if row.system == "refbert")
    table.csv_path.write_text(text.replace(f"{row.score}", f"{row.score - 0.01:.6f}", 1))
    assert summarise(table).difference("refbert", "tinybert")["MRPC"].low is None


def test_both_dev_sets_of_mnli_are_drawn(tmp_path: Path) -> None:
    folder = glue_layouts.glue_folder(tmp_path / "mnli", "MNLI")
    table = fabricate(table_file(tmp_path, tasks={"MNLI": {"task.path": str(folder)}}))
    found = summarise(table).by_task["MNLI"]
    assert found.metrics == ("accuracy", "accuracy_mm")
    assert found.drawn.keys() == found.by_member.keys()
    for member, values in found.drawn.items():
        assert values.mean() == pytest.approx(found.by_member[member], abs=0.01)
    (tmp_path / "run" / "cells" / "MNLI-seed0" / "answers" / "dev-mismatched" / "refbert.safetensors").unlink()
    assert ("refbert", 0) not in summarise(table).by_task["MNLI"].drawn


def test_the_verdict_follows_from_the_intervals(table: Table, tmp_path: Path) -> None:
    said = verdicts(summarise(table))
    assert said[0].startswith("RefBERT k=2 against TinyBERT: helps on MRPC (+")
    assert "On average over 2 tasks: helps, +" in said[1]
    assert "claimed for BERT-base on GLUE: +8.1 %" in said[2]
    assert "claimed for BERT-base on GLUE: 94.0 %; here: this interval neither confirms" in said[3]
    even = fabricate(table_file(tmp_path), skills={**SKILLS, "refbert": 0.6})
    said = verdicts(summarise(even))
    assert "no difference shown on MRPC" in said[0] and "below the claim" in said[-2] + said[-1]


def test_a_variant_is_compared_like_any_student_and_is_no_control(tmp_path: Path) -> None:
    path = table_file(tmp_path, variants={"good": {"references.count": 4}, "bad": {"references.gate": "bias"}})
    found = summarise(fabricate(path, "systems=[refbert,tinybert,random]", skills={**SKILLS, "good": 0.95, "bad": 0.3}))
    names = ["tinybert", "refbert", "refbert:good", "refbert:bad", "random"]
    assert found.systems == ["teacher", *names] and found.students == names
    assert [found.label(name) for name in names[2:4]] == ["RefBERT k=2, good", "RefBERT k=2, bad"]
    assert found.difference("refbert:good", "tinybert")["MRPC"].verdict == "helps"
    assert found.difference("refbert:bad", "tinybert")["MRPC"].verdict == "hurts"
    assert found.difference("refbert:good", "refbert")["MRPC"].points != ()
    (controls,) = (part for part in parts(found) if part.heading == "RefBERT k=2 less its controls")
    assert [row[0] for row in controls.rows] == ["random k=2"]
    (compared,) = (part for part in parts(found) if part.heading == "Variants against each other")
    assert [row[0] for row in compared.rows] == [
        *("RefBERT k=2, good less RefBERT k=2", "RefBERT k=2, bad less RefBERT k=2"),
        "RefBERT k=2, bad less RefBERT k=2, good",
    ]
    assert [row[1][0] for row in compared.rows] == ["+", "-", "-"]
    without = load_table(path, ["systems=[refbert,tinybert,random]", "variants={}"])
    assert summarise(without).systems == ["teacher", "tinybert", "refbert", "random"]
    assert all(part.heading != "Variants against each other" for part in parts(summarise(without)))


def test_a_single_seed_is_said(table: Table, tmp_path: Path) -> None:
    assert not any(sentence.startswith("One seed alone") for sentence in verdicts(summarise(table)))
    said = verdicts(summarise(fabricate(table_file(tmp_path, seeds=1))))
    assert said[1].startswith("One seed alone on MRPC: the interval is of rows")


def test_an_unequal_budget_is_said(tmp_path: Path) -> None:
    table = fabricate(table_file(tmp_path))
    text = table.csv_path.read_text()
    assert not any("NOT equal" in sentence for sentence in verdicts(summarise(table)))
    table.csv_path.write_text(text.replace(",10,120,", ",12,120,", 3))
    assert any("budget is NOT equal on MRPC" in sentence for sentence in verdicts(summarise(table)))


def test_the_page_and_the_markdown_have_the_same_tables(table: Table) -> None:
    text, page = write_table(table), Page(table.run_dir / "report.html")
    assert (table.run_dir / "table.md").read_text() == text
    for heading in ("Scores", "Difference to TinyBERT", "RefBERT k=2 less its controls", "Every metric", "Budget"):
        assert f"## {heading}\n" in text and heading in page.headings
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| RefBERT k=2 |")]
    assert all(any(row in table for table in page.tables) for row in rows)
    assert page.charts == 2
    assert not any(reference.startswith("http") for reference in page.references)


@pytest.mark.browser
def test_a_browser_draws_the_page(table: Table) -> None:
    write_table(table)
    drawn = draw(table.run_dir / "report.html")
    assert drawn.complaints == []
    assert drawn.dom.count("main-svg") >= 2


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    path = table_file(tmp_path)
    table = load_table(path)
    run.begin(table)
    assert "no cell is done" in write_table(table)
    assert "no cell is done" in Page(table.run_dir / "report.html").text
    assert add_rows(table.csv_path, []) == [] and not table.csv_path.exists()
