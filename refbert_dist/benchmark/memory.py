"""Peak memory of one forward pass: ``python -m refbert_dist.benchmark.memory FOLDER BATCH LENGTH COUNT TOKENS``.

A process of its own, because what another model has needed before cannot be told from its own. Prints the bytes that
loading the model and one pass need beyond the libraries.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from refbert_dist.benchmark.inputs import random_inputs
from refbert_dist.inference.networks import TorchNetwork
from refbert_dist.tracking.quiet import quiet_libraries


def peak_bytes(folder: Path, batch: int, length: int, count: int, tokens: int) -> int:
    """Measure it in a process of its own; ``count`` references of ``tokens`` tokens."""
    numbers = map(str, (batch, length, count, tokens))
    command = [sys.executable, "-m", "refbert_dist.benchmark.memory", str(folder), *numbers]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _measured(folder: Path, batch: int, length: int, count: int, tokens: int) -> int:
    quiet_libraries()
    before = psutil.Process().memory_info().rss
    network = TorchNetwork(folder, None, "float32", compiled=False)
    network(*random_inputs(network.model.config.to_dict(), batch, length, count, tokens))
    if network.device.type == "cuda":
        allocated: int = torch.cuda.max_memory_allocated()
        return allocated
    # Not from getrusage, whose peak is that of the process that started this one, if that was higher.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return int(peak[1]) * 1024 - int(before)


if __name__ == "__main__":
    sys.stdout.write(str(_measured(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
