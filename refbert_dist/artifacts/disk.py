"""Durable writes: nothing is seen under its final name before it is whole and on the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from refbert_dist.errors import UserError

Write = Callable[[Path], None]
"""Writes a file at the path that it is given."""


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """A name that no other process uses, in the folder of ``path``, hidden from readers."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def share_with_group(path: Path) -> None:
    """Give a new file or folder the group rights of the folder that it lies in, whatever the umask.

    The group itself, and setgid, it has from there already where the folder is setgid.
    """
    above, own = path.parent.stat(), path.stat()
    if own.st_gid != above.st_gid:
        return  # Rights that were meant for one group must not be given to another.
    rights = stat.S_IRWXG if stat.S_ISDIR(own.st_mode) else stat.S_IRGRP | stat.S_IWGRP
    mode = (own.st_mode & ~rights) | (above.st_mode & rights)
    if mode != own.st_mode:
        path.chmod(stat.S_IMODE(mode))


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, each with the group rights of the one that it is made in."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        # Not made under another name and renamed: that would put it in the place of one that another process has made
        # meanwhile, as long as that is empty, and so from under the file that is about to be made in it.
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():
            return
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    share_with_group(folder)
    fsync_path(folder.parent)


REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = REASONS.get(_errno(error))
        if reason is None:
            raise
        raise UserError(
            f"cannot write in {folder}: {reason}; free space there, or set run.dir and cache.dir elsewhere"
        ) from error


def _errno(error: OSError | SafetensorError) -> int:
    """The system's error number; safetensors, written in Rust, only mentions it in its text."""
    if isinstance(error, OSError):
        return error.errno or 0
    mentioned = re.search(r"os error (\d+)", str(error))
    return int(mentioned[1]) if mentioned else 0


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success it is flushed and renamed to ``path``, otherwise removed."""
    with explain_disk_errors(path.parent):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            yield temporary
            share_with_group(temporary)
            fsync_path(temporary)
            temporary.replace(path)
            fsync_path(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """The one form in which JSON files are written."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to start work that cannot fit on the disk."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise UserError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB in {folder} but {free / 1e9:.2f} GB are free; "
            "free space there, or set cache.dir to a larger disk"
        )
