"""The page of a report: sections of text, tables and charts in one file, which asks for nothing else."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refbert_dist.report.charts import FONT, library

FILE_NAME = "report.html"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)
"""By which the browser itself sees to it that nothing is fetched."""
STYLE = f"""
html {{ color-scheme: light; font-size: 15px; }}
body {{ margin: 2.5rem auto 5rem; max-width: 75rem; padding: 0 1.5rem; background: #fff; color: #24292f;
  font: 1rem/1.5 {FONT}; }}
h1 {{ font-size: 1.8rem; margin: 0; line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid #d8dde3;
  break-after: avoid; }}
p {{ max-width: 55rem; margin: .5rem 0; }}
.subtitle, .note, figcaption {{ color: #57606a; }}
nav {{ margin: 1.25rem 0 0; }}
nav a {{ color: #0b5394; text-decoration: none; margin-right: 1.1rem; white-space: nowrap; }}
nav a:hover {{ text-decoration: underline; }}
.wide {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #edf0f2; }}
th {{ font-weight: 600; color: #57606a; border-bottom: 1px solid #b8bec6; vertical-align: bottom; }}
td {{ max-width: 36rem; overflow-wrap: break-word; }}
.number {{ text-align: right; }}
td.number {{ white-space: nowrap; }}
tr.marked td {{ background: #eef5fb; }}
.facts th {{ border-bottom: 1px solid #edf0f2; vertical-align: top; white-space: nowrap; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(29rem, 100%), 1fr)); gap: 1rem 2rem; }}
figure {{ margin: .75rem 0 0; min-width: 0; break-inside: avoid; }}
figcaption {{ font-size: .92rem; max-width: 55rem; }}
pre {{ background: #f6f8fa; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }}
summary {{ cursor: pointer; }}
@media print {{ html {{ font-size: 10px; }} body {{ margin: 0; max-width: none; padding: 0; }}
  nav, .modebar {{ display: none; }} .charts {{ display: block; }} pre {{ white-space: pre-wrap; }}
  .wide {{ overflow: visible; }} tr {{ break-inside: avoid; }} }}
"""
FIT = """
// A chart is drawn before what follows it on the page is known, so that its column may still become narrower.
const fit = () => document.querySelectorAll(".plotly-graph-div").forEach((chart) => Plotly.Plots.resize(chart));
for (const moment of ["load", "beforeprint", "afterprint"]) addEventListener(moment, fit);
"""


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    body: str
    """HTML, of the functions below."""

    @property
    def anchor(self) -> str:
        """Its place, for links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file; the time of now stands below the subtitle."""
    links = "\n".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in sections)
    parts = "".join(
        f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>\n{section.body}</section>\n'
        for section in sections
    )
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<script>{library()}</script>
<script>{FIT}</script>
</head>
<body>
<header><h1>{html.escape(title)}</h1>
<p class="subtitle">{html.escape(subtitle)}<br>As of {now}.</p>
<noscript><p>The plots need JavaScript; the tables do not.</p></noscript>
<nav>{links}</nav></header>
{parts}</body>
</html>
"""


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(words)}</p>\n"


def note(words: str) -> str:
    """A paragraph that explains."""
    return f'<p class="note">{html.escape(words)}</p>\n'


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], marked: Iterable[int] = ()) -> str:
    """A table; values as :func:`shown`, numbers to the right. ``marked``: places of rows that stand out."""
    filled, chosen = [list(row) for row in rows], set(marked)
    columns = [[row[place] for row in filled if row[place] is not None] for place in range(len(headings))]
    kinds = [' class="number"' if column and all(map(_is_number, column)) else "" for column in columns]
    head = "".join(f"<th{kind}>{_breakable(name)}</th>" for name, kind in zip(headings, kinds, strict=True))
    body = "".join(
        ('<tr class="marked">' if place in chosen else "<tr>")
        + "".join(f"<td{kind}>{_breakable(shown(value))}</td>" for value, kind in zip(row, kinds, strict=True))
        + "</tr>\n"
        for place, row in enumerate(filled)
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, one below the other; those that are None are left out."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(shown(value))}</td></tr>\n"
        for name, value in values.items()
        if value is not None
    )
    return f'<div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>\n'


def folded(summary: str, body: str) -> str:
    """HTML that is shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}</details>\n"


def verbatim(words: str) -> str:
    """Text as it stands in a file."""
    return f"<pre>{html.escape(words)}</pre>\n"


def charts(found: Sequence[str]) -> str:
    """Charts side by side where there is room."""
    return f'<div class="charts">{"".join(found)}</div>\n'


def shown(value: Any) -> str:
    """A value for people: ``1,234,567``, ``0.8214``, ``3e-05``, ``yes``; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return bool(re.fullmatch(r"-?\d[\d,.:e+-]*( %)?", shown(value)))


def _breakable(words: str) -> str:
    """Escaped, and free to go on in a new line within a field's name."""
    return re.sub(r"(?<=[a-z])\.(?=[a-z])", ".<wbr>", html.escape(words))
