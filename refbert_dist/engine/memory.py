"""Memory that runs out, on a device or on the machine: one sentence that names the settings to change."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterator

import torch

from refbert_dist.config import Experiment
from refbert_dist.errors import UserError

DEVICE = re.compile("CUDA.*(out of memory|ALLOC_FAILED)", re.IGNORECASE)
"""What CUDA, cuBLAS and NCCL say; only torch's own allocator has an error of its own."""
HOST = re.compile(r"DefaultCPUAllocator|std::bad_alloc")
"""What torch says of the machine's memory, in an error that is like any other."""


@contextlib.contextmanager
def explain_out_of_memory(work: str, advice: str) -> Iterator[None]:
    """Raise UserError where memory runs out inside: what ``work`` needs more of, how much there is, and ``advice``."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        place = _exhausted(error)
        if place is None:
            raise
        raise UserError(f"{work} needs more memory than {place}; {advice}") from error


def training_advice(exp: Experiment) -> str:
    """What makes a training job need less memory."""
    config = exp.engine
    ways = []
    if config.micro_batch_size > 1:
        # Dropout is seeded by micro-batch: a run that went on with smaller ones would no longer be the same run.
        ways.append(f"lower engine.micro_batch_size (now {config.micro_batch_size}), which takes another run.dir")
    if config.zero_stage < 3:
        ways.append(f"raise engine.zero_stage (now {config.zero_stage}) on several processes")
    if config.precision == "fp32":
        ways.append("set engine.precision=bf16")
    return ", or ".join([*ways, "take a device with more memory"])


def caching_advice(exp: Experiment) -> str:
    """What makes a build of the teacher cache need less memory."""
    config = exp.cache
    ways = [
        f"lower cache.batch_tokens (now {config.batch_tokens}) or cache.shard_tokens (now {config.shard_tokens}), "
        "which begins the cache anew",
        f"raise cache.group_processes (now {config.group_processes})",
    ]
    if config.precision == "fp32":
        ways.append("set cache.precision=bf16, which takes another run.dir")
    return ", or ".join(ways)


def _exhausted(error: Exception) -> str | None:
    """Whose memory has run out, and how much that is; None if ``error`` is another one."""
    if isinstance(error, torch.OutOfMemoryError) or DEVICE.search(str(error)):
        number = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(number)
        return f"GPU {number} ({properties.name}, {properties.total_memory / 1e9:.1f} GB) has left"
    # A file that cannot be mapped for lack of memory is an OSError.
    if not (isinstance(error, MemoryError) or HOST.search(str(error)) or getattr(error, "errno", 0) == errno.ENOMEM):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        return f"this process may have ({limit / 1e9:.1f} GB, ulimit -v)"
    return f"this machine has left ({os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB in all)"
