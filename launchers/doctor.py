"""``refbert doctor``: is this machine able to run the toolkit, and what is missing?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from launchers.profile import load_profile
from refbert_dist.engine.processes import has_cuda_device
from refbert_dist.errors import RefusedError

PACKAGES = {
    "torch": "training and inference",
    "deepspeed": "teacher caching and distillation",
    "transformers": "teacher and student",
    "datasets": "corpora and tables",
    "mlflow": "tracking; or set tracking.mlflow=false",
}


def examine(on: str, dry_run: bool) -> None:
    """Print one line for each check; raise when a needed one fails."""
    console = Console()
    profile = load_profile(on)
    if dry_run:
        console.print(f"would check on {on}: python, {', '.join(PACKAGES)}, processors, disk, folder, hub")
        return
    missing = 0
    for good, name, text in _checks():
        line = f"{'ok     ' if good else 'MISSING'} {name:14} {text}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        missing += not good
    console.print(f"ok      {'profile':14} {on}: {profile.cluster}", highlight=False)
    if missing:
        raise RefusedError(f"{missing} thing(s) missing, named above")


def _checks() -> Iterator[tuple[bool, str, str]]:
    """Good or not, what, and what was found."""
    yield sys.version_info >= (3, 11), "python", sys.version.split()[0] + " (needs 3.11 or newer)"
    for package, purpose in PACKAGES.items():
        try:
            yield True, package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield False, package, f"not installed: pip install {package} ({purpose})"
    device = "a CUDA device" if has_cuda_device() else "no CUDA device: gloo on CPU"
    yield True, "processors", f"{len(os.sched_getaffinity(0))} cores, {device}"
    free = shutil.disk_usage(Path.cwd()).free
    yield free > 2e9, "disk", f"{free / 1e9:.1f} GB free here (the demo takes 1.6 GB)"
    yield os.access(Path.cwd(), os.W_OK), "folder", f"{Path.cwd()} is writable"
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield True, "hub", "HF_HUB_OFFLINE is set: local models and data only" if offline else "hub names are tried online"
