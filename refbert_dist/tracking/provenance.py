"""Where results come from: ``RUN_DIR/provenance.json``, a list with one entry for each start of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import refbert_dist
from refbert_dist.errors import RefusedError
from refbert_dist.tracking.files import locked, read_json_or_none, replace_json

FILE_NAME = "provenance.json"
PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "mlflow",
)
GIT_TIMEOUT_S = 10


def write_provenance(run_dir: Path | str) -> dict[str, Any]:
    """Append an entry about this start (a run may be continued later, or on another machine) and return it.

    The entry holds id, started (ISO 8601), argv, folder (the working directory), commit and dirty (None outside a git
    checkout), version of this package, versions of the libraries (None if not installed), python, hostname, platform,
    cpus and slurm_job (None outside a job).
    """
    commit, dirty = source_commit(Path(refbert_dist.__file__).parent)
    entry = {
        "id": uuid.uuid4().hex,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
        "folder": str(Path.cwd()),
        "commit": commit,
        "dirty": dirty,
        "version": installed_version("refbert-dist"),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hostname": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
    path = Path(run_dir) / FILE_NAME
    # The jobs of a chain may start at the same moment on several machines.
    with locked(path):
        replace_json(path, [*(read_json_or_none(path) or []), entry])
    return entry


def run_id(run_dir: Path | str) -> str:
    """Name of the run that stays when it is moved or continued: the id of its first start.

    Raises :class:`RefusedError` for a folder that no run was started in.
    """
    entries = read_json_or_none(Path(run_dir) / FILE_NAME)
    if not entries:
        raise RefusedError(f"{run_dir} has no {FILE_NAME}, so no run was started there; give the folder of a run")
    first: str = entries[0]["id"]
    return first


def source_commit(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the git checkout that tracks the package in ``folder``, and whether tracked files differ from it."""
    # An installed package may lie inside some other project's checkout (its .venv); only a tracked file counts.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def installed_version(name: str) -> str | None:
    """Version of an installed package, which is not imported for it; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
