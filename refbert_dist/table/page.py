"""The files of a table: Markdown, and a page with charts that opens offline."""

from __future__ import annotations

from refbert_dist.artifacts import write_text
from refbert_dist.config import to_yaml
from refbert_dist.report.charts import Spot, spots
from refbert_dist.report.page import FILE_NAME, Section, charts, folded, note, page, paragraph, table, verbatim
from refbert_dist.report.run import provenance
from refbert_dist.table.config import Table
from refbert_dist.table.summary import AVERAGE, BASELINE, Summary, summarise
from refbert_dist.table.words import Part, conditions, parts, verdicts

MARKDOWN = "table.md"
NOTHING = "Nothing yet: no cell is done."


def write_table(table: Table) -> str:
    """Write ``table.md`` and ``report.html`` into the run directory; returns the former's text."""
    found = summarise(table)
    text = _markdown(table, found)
    write_text(table.run_dir / MARKDOWN, text)
    write_text(table.run_dir / FILE_NAME, _page(table, found))
    return text


def _markdown(table: Table, found: Summary) -> str:
    if not found.rows:
        return f"# {table.title}\n\n{NOTHING}\n"
    said = "\n".join(f"- {sentence}" for sentence in verdicts(found))
    blocks = [f"# {table.title}", conditions(found), said]
    for part in parts(found):
        blocks += [f"## {part.heading}", part.words, _lines(part)]
    return "\n\n".join(blocks) + "\n"


def _lines(part: Part) -> str:
    lines = [part.headings, ["---", *["---:"] * (len(part.headings) - 1)], *part.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _page(table: Table, found: Summary) -> str:
    if found.rows:
        said = "".join(paragraph(sentence) for sentence in verdicts(found))
        sections = [
            Section("What it says", said + note(conditions(found))),
            Section("Plots", charts(_charts(found))),
            *(Section(part.heading, note(part.words) + _html(part)) for part in parts(found)),
        ]
    else:
        sections = [Section("What it says", paragraph(NOTHING))]
    sections += [
        Section("Provenance", provenance(table.run_dir)),
        Section("Settings", folded("The table file", verbatim(to_yaml(table)))),
    ]
    sizes = {"task": len(table.tasks), "cell": len(table.cells)}
    counted = ", ".join(f"{number} {what}{'s' if number > 1 else ''}" for what, number in sizes.items())
    cells = f"{counted}, rows in {table.csv_path}"
    return page(f"Table {table.title}", cells, sections)


def _html(part: Part) -> str:
    return table(part.headings, part.rows)


def _charts(found: Summary) -> list[str]:
    names = [found.label(system) for system in found.systems]
    drawn = [spots("Score of each seed, in points, and the mean", _score_spots(found), "points", names)]
    if BASELINE in found.students and len(found.students) > 1:
        name = found.label(BASELINE)
        text = f"Difference to {name}: each seed, the mean, and the interval of 95 % of resamples"
        drawn.append(spots(text, _difference_spots(found), f"points above {name}", names, level=0.0))
    return drawn


def _score_spots(found: Summary) -> list[Spot]:
    return [
        Spot(
            task, found.label(system), points, 100 * score.mean, None, f"{found.label(system)}\n{100 * score.mean:.1f}"
        )
        for task in found.tasks
        for system in found.systems
        if (score := found.score(task, system))
        for points in [[100 * value for value in score.points]]
    ]


def _difference_spots(found: Summary) -> list[Spot]:
    drawn = []
    by_system = {system: found.difference(system, BASELINE) for system in found.students if system != BASELINE}
    for task in (*found.tasks, AVERAGE):
        for system, by_task in by_system.items():
            if (each := by_task.get(task)) is None or (task == AVERAGE and len(found.tasks) == 1):
                continue
            reach = None if each.low is None or each.high is None else (100 * each.low, 100 * each.high)
            points = [100 * value for value in each.points]
            hover = f"{found.label(system)}\n{100 * each.value:+.1f}"
            drawn.append(Spot(task, found.label(system), points, 100 * each.value, reach, hover))
    return drawn
