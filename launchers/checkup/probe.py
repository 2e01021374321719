"""What ``refbert doctor`` looks at on a node of the cluster.

The module needs nothing but Python itself, so that it can tell what else is not there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "deepspeed", "transformers", "datasets", "mlflow", "submitit")
IMPORTS = ("torch", "deepspeed", "launchers.cluster.job")
"""The last stands for the toolkit and all that it needs."""
NETWORK_WAIT_S = 2.0
FROM_HERE, REPORT = "from-login-node", "report.json"
"""Files in the folder of the probe: what the submitting machine leaves for the node, and the node's answer."""


@dataclass(frozen=True)
class NodeReport:
    """What a process finds on its node."""

    host: str
    read: str
    """What the submitting machine has left in the folder; "" if nothing is seen of it."""
    time_s: float
    """The node's clock, seconds since the epoch."""
    python: str
    versions: dict[str, str | None]
    """Of installed distributions; None: not there."""
    failures: dict[str, str]
    """Modules that cannot be imported, and why."""
    cores: int
    """That this process may use."""
    memory_gb: float
    """Of the node."""
    gpus: int
    """That torch sees."""
    gpu_text: str
    """What SLURM and torch say of them."""
    gpu_failure: str | None
    """Why computing on them does not work."""
    reaches_hub: bool
    interfaces: tuple[str, ...]
    address: str
    """That the node's own name stands for; "" if none."""
    temporary: str
    """The node-local folder for temporary files."""
    temporary_free_gb: float
    hub_cache: str
    seen: dict[str, bool]
    """Folders that were asked for, and whether they are there."""


@dataclass(frozen=True)
class Probe:
    """The job: look around, and leave a report."""

    folder: str
    """Where to read and write."""
    folders: tuple[str, ...]
    """Whose presence to report."""

    def __call__(self, _element: int) -> int:
        """Write the report; it appears in one step."""
        folder = Path(self.folder)
        text = json.dumps(asdict(look_around(folder, self.folders)))
        temporary = folder / f".{REPORT}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(folder / REPORT)
        return 0


def look_around(folder: Path, folders: Iterable[str]) -> NodeReport:
    """Everything that a report holds, as this process finds it."""
    attempts = {module: _failure(partial(importlib.import_module, module)) for module in IMPORTS}
    failures = {module: failure for module, failure in attempts.items() if failure}
    gpus, gpu_text, gpu_failure = (0, "", None) if "torch" in failures else _gpus()
    note = folder / FROM_HERE
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return NodeReport(
        host=socket.gethostname(),
        read=note.read_text(encoding="utf-8") if note.exists() else "",
        time_s=time.time(),
        python=sys.version.split()[0],
        versions=versions(),
        failures=failures,
        cores=len(os.sched_getaffinity(0)),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        gpus=gpus,
        gpu_text=gpu_text,
        gpu_failure=gpu_failure,
        reaches_hub=_within(NETWORK_WAIT_S, _reach_hub),
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        address=_own_address(),
        temporary=tempfile.gettempdir(),
        temporary_free_gb=free / 1e9,
        hub_cache=hub_cache(),
        seen={name: Path(name).is_dir() for name in folders},
    )


def versions() -> dict[str, str | None]:
    """Installed versions of what jobs need; None: not there."""
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def hub_cache() -> str:
    """Where models and data of the hub are kept."""
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(os.environ.get("HF_HOME") or f"{above}/huggingface").expanduser())


def _failure(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _gpus() -> tuple[int, str, str | None]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = "SLURM gives none" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible}"
    count = torch.cuda.device_count()
    if not count:
        return 0, f"{given}, and torch {torch.__version__} sees no GPU", None
    # A driver too old, or a build for other GPUs, shows only when something is computed.
    failure = _failure(lambda: torch.ones(2, device="cuda").sum().item())
    return count, f"{given}, torch sees {count} x {torch.cuda.get_device_name(0)}", failure


def _reach_hub() -> None:
    address = urllib.request.getproxies().get("https") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    socket.create_connection((parts.hostname, parts.port or 443), timeout=NETWORK_WAIT_S).close()


def _within(seconds: float, action: Callable[[], Any]) -> bool:
    """Whether an action ends well in time; looking up a name knows no limit of its own."""
    succeeded = threading.Event()

    def attempt() -> None:
        if _failure(action) is None:
            succeeded.set()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return succeeded.is_set()


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
