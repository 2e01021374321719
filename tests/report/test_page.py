"""The page of reports: what people wrote cannot break it, and the browser lets it ask for nothing."""

from pathlib import Path

import pytest
from pages import Page, draw

from refbert_dist.report.charts import Series, chart
from refbert_dist.report.page import Section, facts, page, paragraph, shown, table, verbatim

NASTY = "</td></script><b onclick='x()'>&amp; \"k\""


def written(tmp_path: Path, *sections: Section) -> Path:
    path = tmp_path / "report.html"
    path.write_text(page(NASTY, NASTY, sections), encoding="utf-8")
    return path


def test_text_of_people_is_text_everywhere(tmp_path: Path) -> None:
    body = paragraph(NASTY) + table([NASTY], [[NASTY]], [0]) + facts({NASTY: NASTY}) + verbatim(NASTY)
    points = chart(NASTY, [Series(NASTY, [(1, 2)], hover=[NASTY])], NASTY, NASTY, {NASTY: 1.0})
    found = Page(written(tmp_path, Section(NASTY, body + points)))
    # Title, heading, subtitle, link, heading of the section, paragraph, 2 in each table, as it stands, caption.
    assert found.text.count(NASTY) == 12
    assert found.tables == [[[NASTY], [NASTY]], [[NASTY, NASTY]]]
    assert found.marked == [[NASTY]]
    assert found.charts == 1


def test_links_lead_to_the_sections_and_nowhere_else(tmp_path: Path) -> None:
    found = Page(written(tmp_path, Section("All trials", ""), Section("The teacher's work", "")))
    assert found.references == ["#all-trials", "#the-teacher-s-work"]
    assert {reference[1:] for reference in found.references} <= set(found.anchors)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (True, "yes"),
        (0, "0"),
        (1234567, "1,234,567"),
        (22713986.0, "22,713,986"),
        (0.5528, "0.5528"),
        (3e-05, "3e-05"),
        ("as it is", "as it is"),
        ([2, 4], "[2, 4]"),
    ],
)
def test_values_for_people(value: object, words: str) -> None:
    assert shown(value) == words


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    text = table(
        ["name", "steps", "time", "share", "none"],
        [["a", 3, "1:02", "96.7 %", None], ["7b", None, "0:01", "1 %", None]],
    )
    kinds = ['class="number"' in cell for cell in text.split("</thead>")[0].split("<th")[2:]]
    assert kinds == [False, True, True, True, False]


@pytest.mark.browser
def test_a_page_that_asks_for_anything_would_be_noticed(tmp_path: Path) -> None:
    asking = '<img src="https://example.org/a.png"><script>absent()</script>'
    drawn = draw(written(tmp_path, Section("a", asking)))
    assert len(drawn.complaints) == 2
    assert "Content Security Policy" in drawn.complaints[0] and "absent is not defined" in drawn.complaints[1]
