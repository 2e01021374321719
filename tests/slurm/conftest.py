"""A real SLURM for the tests of this folder: `slurm/sandbox`. All of them carry the mark `slurm`."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SANDBOX = HERE.parents[1] / "slurm" / "sandbox"
pytest.register_assert_rewrite("survivors")
USABLE = ("idle", "alloc", "mix", "comp", "plnd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("slurm")


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.1)


class Sandbox:
    """The running cluster, as a user of its login host and as the one who breaks its nodes."""

    def __init__(self) -> None:
        self._touched: set[str] = set()

    def sh(self, *argv: str | Path, check: bool = True) -> str:
        """What a command prints, without white space around it; with `check` it must succeed."""
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{argv} exited with {done.returncode}: {done.stderr}"
        return done.stdout.strip()

    def squeue(self, job_id: str) -> str:
        """The state of a job in the queue; '' when it has left."""
        return self.sh("squeue", "-h", "-j", job_id, "-o", "%T", check=False)

    def sacct(self, job_id: str) -> str:
        """The state of a job's last attempt in the accounting, which is a second or two behind the queue."""
        return self.sh("sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State")

    def wait_state(self, job_id: str, *wanted: str, timeout_s: float = 60.0) -> str:
        """Wait until a job has one of the wanted states ('' for gone) in the queue or, once gone, in the accounting."""
        found = ""

        def there() -> bool:
            nonlocal found
            found = self.squeue(job_id)
            if not found and "" not in wanted:
                found = self.sacct(job_id)
            return found in wanted

        wait_for(there, f"job {job_id} to be {' or '.join(wanted)}; it is {found!r}", timeout_s)
        return found

    def node(self, verb: str, name: str) -> None:
        """`slurm/sandbox node VERB NAME`; whatever it breaks is mended after the test."""
        self._touched.add(name)
        self.sh(SANDBOX, "node", verb, name)

    def exec(self, node: str, *argv: str | Path) -> str:
        """What a command prints on a node."""
        return self.sh(SANDBOX, "node", "exec", node, *argv)

    def cancel_all(self) -> None:
        """Cancel every job and wait until the queue is empty."""
        jobs = self.sh("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.sh("scancel", *jobs, check=False)
            wait_for(lambda: not self.sh("squeue", "-h"), "an empty queue")

    def mend(self) -> None:
        """Cancel all jobs, switch on or plug in what tests broke, and wait until all nodes are idle."""
        states = dict(line.split() for line in self.sh("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").splitlines())
        for node in sorted(self._touched | {node for node, state in states.items() if state not in USABLE}):
            self.sh(SANDBOX, "node", "boot", node)
        self._touched.clear()
        self.cancel_all()
        wait_for(lambda: set(self.sh("sinfo", "-h", "-p", "main", "-o", "%t").split()) == {"idle"}, "idle nodes")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """The sandbox, if it is up. With REFBERT_REQUIRE_ALL=1 it is brought up, and down again in the end."""
    up = subprocess.run([SANDBOX, "status"], capture_output=True).returncode == 0
    if up:
        yield Sandbox()
    elif os.environ.get("REFBERT_REQUIRE_ALL") == "1":
        subprocess.run([SANDBOX, "up"], check=True)
        yield Sandbox()
        subprocess.run([SANDBOX, "down"], check=True)
    else:
        pytest.skip("no SLURM sandbox: start one with slurm/sandbox up")


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test of the sandbox leaves jobs or broken nodes to the next one."""
    yield
    if "sandbox" in request.fixturenames:
        request.getfixturevalue("sandbox").mend()


@pytest.fixture
def shared_dir(tmp_path: Path) -> Path:
    """A folder that all nodes see."""
    assert not tmp_path.is_relative_to("/dev/shm"), "the nodes do not share /dev/shm; name another --basetemp"
    return tmp_path
