"""Settings of the whole test suite."""

import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

MUST_RUN = ("dist", "faults", "slurm", "browser")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REFBERT_REQUIRE_ALL=1 (in CI) a test of processes, faults, SLURM or a browser that is skipped has failed."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("REFBERT_REQUIRE_ALL") == "1" and any(map(item.get_closest_marker, MUST_RUN)):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which REFBERT_REQUIRE_ALL=1 forbids: {report.longrepr}"
    return report


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
