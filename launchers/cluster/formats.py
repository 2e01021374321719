"""What SLURM's commands print, as values: jobs and partitions.

Fields are asked for one by one, because JSON output is missing in old versions and changes between new ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

QUEUE_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "NodeList", "TimeUsed", "RestartCnt", "exit_code")
ACCOUNT_FIELDS = ("JobID", "State", "NodeList", "ElapsedRaw", "ExitCode")
NODE_FIELDS = "%R|%c|%m|%G"
"""In the format of sinfo: partition, CPUs, memory in MB, generic resources such as GPUs."""

OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""States of jobs that will not run again."""


@dataclass(frozen=True)
class JobInfo:
    """What SLURM says of a job, or of one job of an array."""

    job_id: str
    """``123``, or ``123_4`` of an array."""
    state: str
    """SLURM's long name: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED``, ..."""
    reason: str = ""
    """Why it is pending; "" otherwise."""
    nodes: str = ""
    """``n[1-2]``; "" if it has none."""
    elapsed_s: float | None = None
    """Of this start, or of the last one."""
    restarts: int | None = None
    """How often it was queued again; None where that is not known."""
    exit_code: str = ""
    """Code and signal, ``0:53``; "" while it has not ended."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended and will not start again."""
        return self.state in OVER


@dataclass(frozen=True)
class Partition:
    """What a partition offers, and to whom."""

    name: str
    is_up: bool
    default: bool
    nodes: int
    """That it has."""
    max_nodes: int | None
    """That one job may use; None: all."""
    max_time_min: float | None
    """Of a job; None: any."""
    allow_accounts: tuple[str, ...] | None
    """None: all."""
    max_cpus_per_node: int
    """Of its largest node, as far as a job may use them."""
    memory_mb: int
    """Of its largest node."""
    gpus_per_node: int
    """Of its best node."""


def parse_queue(text: str) -> Iterator[JobInfo]:
    """Jobs from the output of ``squeue`` in the fields of ``QUEUE_FIELDS``."""
    for line in text.splitlines():
        number, index, state, reason, nodes, used, restarts, code = line.split("|")[: len(QUEUE_FIELDS)]
        info = JobInfo(
            job_id=number if index == "N/A" else f"{number}_{index}",
            state=state,
            reason="" if reason == "None" else reason,
            nodes=nodes,
            elapsed_s=seconds(used),
            restarts=int(restarts),
            exit_code=_exit_code(code),
        )
        yield replace(info, exit_code="") if not info.is_over else replace(info, reason="")


def parse_accounting(text: str) -> Iterator[JobInfo]:
    """Jobs from the output of ``sacct`` in the fields of ``ACCOUNT_FIELDS``; what waits of an array one by one."""
    for line in text.splitlines():
        job_id, state, nodes, elapsed_s, code = line.split("|")
        info = JobInfo(
            job_id,
            state.partition(" ")[0],  # "CANCELLED by 1000"
            nodes="" if nodes == "None assigned" else nodes,
            elapsed_s=float(elapsed_s) if elapsed_s else None,
        )
        if info.is_over:
            info = replace(info, exit_code=code)
        for one in _elements(job_id):
            yield replace(info, job_id=one)


def _elements(job_id: str) -> Iterator[str]:
    """``7``: itself; ``7_[0,2-6:2%3]``: ``7_0``, ``7_2``, ``7_4``, ``7_6``."""
    number, bracket, ranges = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for part in ranges.rstrip("]").partition("%")[0].split(","):
        extent, _, step = part.partition(":")
        first, _, last = extent.partition("-")
        for index in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{number}_{index}"


def _exit_code(text: str) -> str:
    """``768``, as old versions print it, is ``3:0``."""
    if not text.isdecimal():
        return text
    status = int(text)
    number = status & 0x7F
    # In SLURM's own failures the rest of the number means nothing.
    return f"0:{number}" if number else f"{status >> 8 & 0xFF}:0"


def seconds(text: str) -> float | None:
    """Of ``4:05``, ``01:02:03`` or ``2-01:02:03``; None of ``UNLIMITED``, ``INVALID`` and the like."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]):
        return None
    total = 0
    for part in parts:
        total = 60 * total + int(part)
    return total + 86400.0 * int(days or 0)


def parse_partitions(shown: str, nodes: str) -> dict[str, Partition]:
    """From ``scontrol show partition`` and ``sinfo``, which has a line for each kind of node of a partition."""
    kinds = [line.split("|") for line in nodes.splitlines()]
    found = {}
    for line in shown.splitlines():
        fields = dict(item.partition("=")[::2] for item in line.split())
        mine = [kind for kind in kinds if kind[0] == fields["PartitionName"]]
        time_s = seconds(fields["MaxTime"])
        limit = _number(fields["MaxCPUsPerNode"])
        cpus = max((int(kind[1]) for kind in mine), default=0)
        found[fields["PartitionName"]] = Partition(
            name=fields["PartitionName"],
            is_up=fields["State"] == "UP",
            default=fields["Default"] == "YES",
            nodes=int(fields["TotalNodes"]),
            max_nodes=_number(fields["MaxNodes"]),
            max_time_min=None if time_s is None else time_s / 60,
            allow_accounts=None if fields["AllowAccounts"] == "ALL" else tuple(fields["AllowAccounts"].split(",")),
            max_cpus_per_node=cpus if limit is None else min(cpus, limit),
            memory_mb=max((int(kind[2]) for kind in mine), default=0),
            gpus_per_node=max((_gpus(kind[3]) for kind in mine), default=0),
        )
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _gpus(gres: str) -> int:
    """Of ``gpu:a100:4(S:0-1),nvme:1`` 4; of ``(null)`` none."""
    items = re.sub(r"\([^)]*\)", "", gres).split(",")
    return sum(int(item.rpartition(":")[2]) for item in items if item.startswith("gpu:"))
