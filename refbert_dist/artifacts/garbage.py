"""What lies in a cache directory, who uses it, and how to take away what nobody uses.

Only what can be accounted for is ever removed: an artefact that runs have registered with when all of them are gone,
and what killed writers left in registered artefacts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refbert_dist.artifacts.disk import explain_disk_errors, fsync_path
from refbert_dist.artifacts.shards import Artifact
from refbert_dist.errors import RefBertError

DAY_S = 24 * 3600.0
"""Temporary files, files without a sidecar and claims are left alone for so long: their writer may be at work."""

Existence = Literal["exists", "gone", "unknown"]

DOOMED = re.compile(r"\.(?P<key>.+)\.[0-9a-f]{12}\.doomed")
"""Name of an artefact that is being deleted."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
DATA = re.compile(r"(?P<shard>[^.]+)\.[0-9a-f]{8}\.[^.]+")


@dataclass(frozen=True)
class Holding:
    """One artefact of a cache directory."""

    path: Path
    bytes: int
    files: int
    last_used: float
    """Seconds since the epoch."""
    users: dict[Path, Existence]
    """The run directories that have registered."""
    busy: bool
    """Whether somebody seems to be writing: a run registers only with what is finished."""

    @property
    def name(self) -> str:
        """``KIND/KEY``."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def doomed(self) -> bool:
        """Whether its deletion was interrupted."""
        return DOOMED.fullmatch(self.path.name) is not None

    @property
    def deletable(self) -> bool:
        """Whether runs have registered and all of them are gone."""
        registered = self.doomed or bool(self.users)
        return registered and not self.busy and set(self.users.values()) <= {"gone"}


def survey(cache_dir: Path) -> tuple[list[Holding], list[Path]]:
    """The artefacts ``CACHE_DIR/KIND/KEY``, and what else lies in the cache directory and is none."""
    holdings: list[Holding] = []
    others: list[Path] = []
    for kind in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else []:
        if kind.is_symlink() or not kind.is_dir():
            others.append(kind)
            continue
        for path in sorted(kind.iterdir()):
            foreign = path.is_symlink() or not path.is_dir() or TEMPORARY.fullmatch(path.name)
            others.append(path) if foreign else holdings.append(_holding(path))
    return holdings, others


def existence(run_dir: Path) -> Existence:
    """Whether a run directory is still there; ``unknown`` where that cannot be told from this machine."""
    if not run_dir.is_absolute():
        return "unknown"
    top = Path(*run_dir.parts[:2])
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            run_dir.lstat()
            return "exists"
        # Where the file system of the runs is not mounted (in a container, say), every run looks gone.
        return "gone" if top.is_dir() and any(top.iterdir()) else "unknown"
    except OSError:
        return "unknown"


def remove(holding: Holding) -> bool:
    """Delete an artefact; False, and it stays, if a run has come to use it since it was listed.

    It disappears from readers at once, by its name; an interrupted deletion is continued by the next one.
    """
    path = holding.path
    with explain_disk_errors(path.parent):
        if not holding.doomed:
            path = path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.doomed"))
            fsync_path(path.parent)
        if not _holding(path).deletable:
            path.rename(holding.path)
            return False
        shutil.rmtree(path)
    return True


def sweep(path: Path) -> None:
    """Delete one thing that :func:`debris` named."""
    with explain_disk_errors(path.parent):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def debris(holding: Holding) -> list[Path]:
    """What killed writers left in or beside a registered artefact more than a day ago: nothing will ever read it."""
    if not holding.users:
        return []
    artifact = Artifact(holding.path)
    named: set[str] = set()
    unreadable: set[str] = set()
    for shard in artifact.committed():
        try:
            sidecar = artifact.sidecar(shard)
        except RefBertError:
            sidecar = None
        if sidecar is None:
            unreadable.add(shard)
        else:
            named |= {item["file"] for item in sidecar["files"].values()}

    def is_debris(name: str) -> bool:
        data = DATA.fullmatch(name)
        unnamed = data is not None and name not in named and data["shard"] not in unreadable
        return unnamed or name.endswith(".claim") or TEMPORARY.fullmatch(name) is not None

    found = [path for path in holding.path.iterdir() if is_debris(path.name)]
    beside = [path for path in holding.path.parent.iterdir() if TEMPORARY.fullmatch(path.name)]
    found += [path for path in beside if path.name.startswith(f".{holding.path.name}.")]
    return [path for path in sorted(found) if _is_old(path)]


def _holding(path: Path) -> Holding:
    stats = list(_stats(path))
    files = [item for item in stats if not stat.S_ISDIR(item.st_mode)]
    users = Artifact(path).users()
    return Holding(
        path,
        bytes=sum(item.st_size for item in files),
        files=len(files),
        last_used=max([*users.values(), *(item.st_mtime for item in stats)], default=0),
        users={run_dir: existence(run_dir) for run_dir in sorted(users)},
        busy=any(not _is_old(claim) for claim in path.glob("*.claim")),
    )


def _is_old(path: Path) -> bool:
    return max((item.st_mtime for item in _stats(path)), default=0) < time.time() - DAY_S


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all in it; writers may be at work there, so things may vanish meanwhile."""
    inside = (Path(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for item in (path, *inside):
        with contextlib.suppress(FileNotFoundError):
            yield item.lstat()
