"""``refbert report``: which page it writes, and where."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Page
from run_dirs import prepared_run
from searches import fabricate, search_of

Refbert = Callable[..., tuple[int, str, str]]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, refbert: Refbert) -> None:
    code, _, err = refbert("report", tmp_path)
    assert code == 2 and "is not a run directory, because it has no experiment.yaml" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_a_search_have_pages_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, refbert: Refbert
) -> None:
    base = tmp_path_factory.getbasetemp()
    prepared_run(base, tmp_path / "run")
    fabricate(search_of(base / "searches", tmp_path / "search"), ["finished"])
    for kind, heading in (("run", "Results"), ("search", "Pareto front")):
        path = tmp_path / kind / "report.html"
        assert refbert("report", tmp_path / kind, "--dry-run") == (0, f"would write {path}\n", "")
        assert not path.exists()
        code, out, _ = refbert("report", tmp_path / kind)
        assert (code, out) == (0, f"{path}\n")
        assert heading in Page(path).headings
