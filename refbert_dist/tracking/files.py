"""Small status files that readers see whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def replace_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; not fsynced, because it is written often and can be written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process's id: two nodes may have the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json_or_none(path: Path) -> Any:
    """Content of a status file; None when it does not exist or a crash of the machine left it broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that goes with a file (``.NAME.lock`` beside it); others wait. It ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
