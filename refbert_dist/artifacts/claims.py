"""Who works on which shard: any number of workers share out an artefact without speaking to each other.

A claim is a hint that keeps two workers from the same shard, never a lock: what counts is the commit, and the first one
wins. So a worker that dies or is slow holds nobody up. When nothing unclaimed is left, the others take over what it
holds as soon as its process is known to be gone, or once it has had several times as long as they need for a shard.

A claim is a symbolic link to nothing, whose text says who made it: it comes into being whole, in one step.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from refbert_dist.artifacts.disk import explain_disk_errors, make_folder
from refbert_dist.artifacts.shards import Artifact

PATIENCE_FACTOR = 3.0
"""A claim is honoured for this many times the longest that this worker has needed for a shard."""
FIRST_PATIENCE_S = 60.0
"""The same for a worker that has not finished a shard yet."""
LEAST_PATIENCE_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two looks at the shards in others' hands; doubled each time, because hundreds may wait at the end."""


class WorkList:
    """Deals the undone shards of an artefact, one at a time, until all are committed by whomever.

    Args:
        artifact: where the shards are committed.
        names: all its shards, in order.
        start: place in ``names`` where this worker begins; different for each worker, so that claims seldom meet.
    """

    def __init__(self, artifact: Artifact, names: Sequence[str], start: int = 0) -> None:
        self._artifact = artifact
        self._names = [*names[start:], *names[:start]]
        self._untried = deque(self.undone())
        self._taken: set[str] = set()
        self._taken_at: float | None = None
        self._longest_s: float | None = None

    def __iter__(self) -> Iterator[str]:
        """Shards for this worker to write and commit; ends when no shard is left that another might have lost.

        A worker that commits in the background waits for its own commits and then asks again: see :meth:`undone`.
        """
        while (name := self.next()) is not None:
            yield name

    def next(self, wait: bool = True) -> str | None:
        """Claim a shard; None once all are committed or taken by this worker. Waits for those in others' hands.

        Without ``wait`` it is None as soon as nothing can be claimed right away.
        """
        if self._taken_at is not None:
            self._longest_s = max(self._longest_s or 0.0, time.monotonic() - self._taken_at)
            self._taken_at = None
        # The folder of a large cache has 100,000 entries, so it is not listed for every shard, but when the list made
        # at the start has come to its end.
        while self._untried:
            name = self._untried.popleft()
            if not self._artifact.is_committed(name) and self._claim(name):
                return self._take(name)
        pause_s = FIRST_PAUSE_S
        while others := self._in_others_hands():
            for name in others:
                if self._claim(name) or (wait and self._abandoned(name) and self._take_over(name)):
                    return self._take(name)
            if not wait:
                return None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return None

    def undone(self) -> list[str]:
        """Shards without a commit."""
        committed = self._artifact.committed()
        return [name for name in self._names if name not in committed]

    def _in_others_hands(self) -> list[str]:
        undone = self.undone()
        # What was committed and taken back since (a repair) is nobody's any more.
        self._taken &= set(undone)
        return [name for name in undone if name not in self._taken]

    def _claim(self, name: str) -> bool:
        path = self._path(name)
        with explain_disk_errors(path.parent):
            make_folder(path.parent)
            try:
                path.symlink_to(_this_process())
            except FileExistsError:
                return False
            if self._artifact.is_committed(name):  # Between the look and the claim.
                path.unlink(missing_ok=True)
                return False
        return True

    def _take_over(self, name: str) -> bool:
        with explain_disk_errors(self._artifact.path):
            self._path(name).unlink(missing_ok=True)
        return self._claim(name)

    def _take(self, name: str) -> str:
        self._taken.add(name)
        self._taken_at = time.monotonic()
        return name

    def _abandoned(self, name: str) -> bool:
        path = self._path(name)
        try:
            # The file server's clock may differ from ours: then a shard is at worst computed twice, or a little later.
            age_s = time.time() - path.lstat().st_mtime
        except FileNotFoundError:
            return False
        patience_s = FIRST_PATIENCE_S
        if self._longest_s is not None:
            patience_s = max(LEAST_PATIENCE_S, PATIENCE_FACTOR * self._longest_s)
        return age_s > patience_s or _is_gone(path)

    def _path(self, name: str) -> Path:
        return self._artifact.path / f"{name}.claim"


def _this_process() -> str:
    pid = os.getpid()
    return f"{_host()}+{pid}+{_start_of(pid)}"


def _host() -> str:
    """This host, or the container on it: process ids mean nothing outside of it."""
    return f"{socket.gethostname()}+{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_of(pid: int) -> str | None:
    """When a process began, None if it has ended: a later one may have its id, a killed one may wait to be reaped."""
    try:
        status = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start


def _is_gone(claim: Path) -> bool:
    """Whether the one who made the claim ran on this host and has ended, or was this process in an earlier attempt."""
    try:
        host, pid, started = str(claim.readlink()).rsplit("+", 2)
        return host == _host() and (int(pid) == os.getpid() or _start_of(int(pid)) != started)
    except (OSError, ValueError):
        return False  # Gone meanwhile, or no claim of ours: its age decides.
