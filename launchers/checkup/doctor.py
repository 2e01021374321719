"""``refbert doctor``: is this machine, or a cluster, able to run the toolkit, and what is missing?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from launchers.checkup.checks import Check
from launchers.checkup.cluster import CHECKS, check_cluster
from launchers.profile import Profile, SlurmProfile, load_profile
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
    """Print one line for each check of this machine, and of the cluster if ``on`` is a profile of one.

    Raises:
        RefusedError: something needed is missing.
        UserError: the profile is wrong.
    """
    console = Console()
    profile = load_profile(on)
    if dry_run:
        _print(f"would check on {on}: python, {', '.join(PACKAGES)}, processors, disk, folder, hub", console)
        if isinstance(profile, SlurmProfile):
            _print(f"and of the cluster: {CHECKS}", console)
        return
    missing = 0
    for check in _checks(on, profile):
        _print(check.line, console)
        missing += check.verdict == "MISSING"
    if missing:
        raise RefusedError(f"{missing} thing(s) missing, named above")


def _print(text: str, console: Console) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _checks(on: str, profile: Profile) -> Iterator[Check]:
    yield from _check_machine()
    yield Check("ok", "profile", f"{on}: {profile.cluster}")
    if isinstance(profile, SlurmProfile):
        yield from check_cluster(profile)


def _check_machine() -> Iterator[Check]:
    yield _check(sys.version_info >= (3, 11), "python", sys.version.split()[0] + " (needs 3.11 or newer)")
    for package, purpose in PACKAGES.items():
        yield _package(package, purpose)
    device = "a CUDA device" if has_cuda_device() else "no CUDA device: gloo on CPU"
    yield Check("ok", "processors", f"{len(os.sched_getaffinity(0))} cores, {device}")
    free = shutil.disk_usage(Path.cwd()).free
    yield _check(free > 2e9, "disk", f"{free / 1e9:.1f} GB free here (the demo takes 1.6 GB)")
    writable = os.access(Path.cwd(), os.W_OK)
    yield _check(
        writable, "folder", f"{Path.cwd()} is {'writable' if writable else 'not writable; work in one that is'}"
    )
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    hub = "HF_HUB_OFFLINE is set: local models and data only" if offline else "hub names are tried online"
    yield Check("ok", "hub", hub)


def _package(package: str, purpose: str) -> Check:
    try:
        return Check("ok", package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Check("MISSING", package, f"not installed: pip install {package} ({purpose})")


def _check(good: bool, name: str, text: str) -> Check:
    return Check("ok" if good else "MISSING", name, text)
