"""``RUN_DIR/system.jsonl``: what the first process of each stage takes of its machine.

One JSON object a line, every 15 seconds and at the end of the stage::

    {"time": 1700000000.0, "stage": "distill-general", "cpu_percent": 197.5, "memory_gb": 1.62, ...}

``time`` is in seconds since the epoch; ``cpu_percent`` is 100 for each core in use, and like ``memory_gb`` (10^9 bytes)
of the process and all that it has started; ``machine_memory_percent`` is of the whole machine; ``gpu_N_percent`` and
``gpu_N_memory_gb`` are of each NVIDIA GPU that the process may use.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

FILE_NAME = "system.jsonl"
INTERVAL_S = 15.0
GPU_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def sampled(run_dir: Path, stage: str) -> Iterator[None]:
    """Append to the file of a run while the body goes on, from a thread that never stops it."""
    ending = threading.Event()
    thread = threading.Thread(target=_watch, args=(run_dir / FILE_NAME, stage, ending), name="system", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _watch(path: Path, stage: str, ending: threading.Event) -> None:
    since, (used, _) = time.monotonic(), _process_tree()
    ended = False
    while not ended:
        ended = ending.wait(INTERVAL_S)
        now, (using, memory) = time.monotonic(), _process_tree()
        # What a process had used that was not waited for when it ended is gone, hence no less than nothing.
        figures = {"cpu_percent": 100 * max(0.0, using - used) / (now - since), "memory_gb": memory / 1e9}
        since, used = now, using
        figures |= {"machine_memory_percent": psutil.virtual_memory().percent, **_gpus()}
        record = {"time": time.time(), "stage": stage, **{name: round(value, 3) for name, value in figures.items()}}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            logger.warning("%s gets no more records: %s", path, error)
            return


def _process_tree() -> tuple[float, float]:
    """Seconds of processor time so far, and bytes of memory, of this process and all below it."""
    seconds, memory = 0.0, 0.0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
            memory += process.memory_info().rss
    return seconds, memory


def _gpus() -> dict[str, float]:
    """Use and memory of the GPUs, from the driver's own tool; nothing where there is none or it does not answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    tool = shutil.which("nvidia-smi")
    if tool is None or visible == "":
        return {}
    command = [tool, "--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    found: dict[str, float] = {}
    # A value that the driver does not know is no number.
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
        for line in done.stdout.splitlines():
            index, percent, mebibytes = line.split(",")
            found[f"gpu_{int(index)}_percent"] = float(percent)
            found[f"gpu_{int(index)}_memory_gb"] = float(mebibytes) * 2**20 / 1e9
    return found
