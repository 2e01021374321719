"""A bounded node-local copy of files that are read at random, shared by the processes of the node."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from refbert_dist.artifacts.disk import explain_disk_errors, temporary_beside
from refbert_dist.errors import UserError


class Staging:
    """Copies files into a folder; those not asked for longest make way.

    A file that is removed while another process has it mapped stays readable there until it lets go of it.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes

    def fetch(self, source: Path) -> Path:
        """The local copy of a file whose name tells its content, made when it is missing or cut short."""
        local = self.folder / f"{source.parent.name}-{source.name}"
        size = source.stat().st_size
        if size > self.budget_bytes:
            raise UserError(
                f"cache.staging_gb is {self.budget_bytes / 1e9:g}, but {source.name} alone has {size / 1e9:.2f} GB; "
                "set more room, or a smaller cache.shard_tokens"
            )
        if not _touch(local, size):
            with explain_disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / ".lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not _touch(local, size):  # Another process may have copied it while this one waited.
                        self._make_room(size)
                        temporary = temporary_beside(local)
                        try:
                            shutil.copyfile(source, temporary)
                            temporary.replace(local)
                        finally:
                            temporary.unlink(missing_ok=True)
        return local

    def _make_room(self, needed: int) -> None:
        files = [(path.stat(), path) for path in self.folder.iterdir() if path.is_file()]
        used = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if used + needed <= self.budget_bytes:
                return
            # Temporary files too: with the lock in hand, they are what a killed process left.
            if path.name != ".lock":
                path.unlink(missing_ok=True)
                used -= stat.st_size


def _touch(path: Path, size: int) -> bool:
    """Whether the file is there whole; notes that it was asked for now."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
