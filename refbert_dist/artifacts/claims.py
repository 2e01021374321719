"""Who works on which shard: any number of workers share out an artefact without speaking to each other.

A claim is a hint that keeps two workers from the same shard, never a lock: what counts is the commit, and the first one
wins. So a worker that dies or is slow holds nobody up. When nothing unclaimed is left, the others take over what it
holds as soon as its process is known to be gone, or once it has had several times as long as they need for a shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from refbert_dist.artifacts.disk import explain_disk_errors, read_json
from refbert_dist.artifacts.shards import Artifact

PATIENCE_FACTOR = 3.0
"""A claim is honoured for this many times the longest that this worker has needed for a shard."""
FIRST_PATIENCE_S = 60.0
"""The same for a worker that has not finished a shard yet."""
LEAST_PATIENCE_S = 2.0
POLL_S = 0.2


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
        self._longest_s: float | None = None
        self._held: tuple[str, float] | None = None

    def __iter__(self) -> Iterator[str]:
        """Shards for this worker to write and commit; ends when every shard is committed."""
        while (name := self.next()) is not None:
            yield name

    def next(self) -> str | None:
        """Claim a shard; None once all are committed. Waits where the rest is in good hands."""
        self._release()
        while undone := self.undone():
            for name in undone:
                if self._claim(name):
                    return self._take(name)
            for name in undone:
                if self._abandoned(name):
                    self._path(name).write_text(_claim_of_this_process(), encoding="utf-8")
                    return self._take(name)
            time.sleep(POLL_S)
        return None

    def undone(self) -> list[str]:
        """Shards without a commit."""
        committed = self._artifact.committed()
        return [name for name in self._names if name not in committed]

    def _claim(self, name: str) -> bool:
        path = self._path(name)
        with explain_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("x", encoding="utf-8") as stream:
                    stream.write(_claim_of_this_process())
            except FileExistsError:
                return False
        return True

    def _take(self, name: str) -> str:
        self._held = (name, time.monotonic())
        return name

    def _release(self) -> None:
        if self._held is None:
            return
        name, since = self._held
        self._longest_s = max(self._longest_s or 0.0, time.monotonic() - since)
        self._path(name).unlink(missing_ok=True)
        self._held = None

    def _abandoned(self, name: str) -> bool:
        path = self._path(name)
        try:
            # The file server's clock may differ from ours: then a shard is at worst computed twice, or a little later.
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return False
        patience_s = FIRST_PATIENCE_S
        if self._longest_s is not None:
            patience_s = max(LEAST_PATIENCE_S, PATIENCE_FACTOR * self._longest_s)
        return age_s > patience_s or _is_gone(path)

    def _path(self, name: str) -> Path:
        return self._artifact.path / f"{name}.claim"


def _claim_of_this_process() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _is_gone(claim: Path) -> bool:
    """Whether the process that made the claim ran on this host and has ended."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        holder = read_json(claim)
        return holder["host"] == socket.gethostname() and not Path("/proc", str(holder["pid"])).exists()
    return False
