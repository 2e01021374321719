"""Pages of reports, read as a program reads them and as a browser draws them."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

REFERENCES = ("src", "href", "action", "data", "poster", "srcset")


class Page(HTMLParser):
    """What a page holds: text without scripts, tables as lists of rows, links, headings, marked rows, charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.references: list[str] = []
        self.anchors: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.marked: list[list[str]] = []
        self.charts = 0
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in REFERENCES]
        self.anchors += [value for name, value in attrs if name == "id" and value]
        self.charts += given.get("class") == "plotly-graph-div"
        if tag not in ("meta", "br", "wbr"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            if given.get("class") == "marked":
                self.marked.append(self.tables[-1][-1])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if "h2" in self._open:
            self.headings.append(data)

    @property
    def text(self) -> str:
        """Everything that a person reads, but for the charts."""
        return "".join(self.words)

    def table(self, *headings: str) -> list[list[str]]:
        """The rows of the table whose first columns have these headings."""
        (rows,) = (rows for rows in self.tables if tuple(rows[0][: len(headings)]) == headings)
        return rows[1:]


@dataclass(frozen=True)
class Drawn:
    """What a browser without a network made of a page."""

    dom: str
    complaints: list[str]
    """Of its console: errors of scripts, and whatever the page asked for."""


def draw(path: Path) -> Drawn:
    """Open a page in chromium; skips the test where that is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium; on Debian: apt-get install --no-install-recommends chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,2000"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=20000"]
        command = [chromium, *options, f"--user-data-dir={profile}", "--dump-dom", path.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line and "source: chrome:" not in line]
    return Drawn(done.stdout, said)
