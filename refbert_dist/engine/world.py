"""Who this process is among the processes of a job. Knows neither torch nor SLURM."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from refbert_dist.errors import UserError

# Below the range that Linux hands to outgoing connections (32768 and up): between choosing a port and listening on it
# lie the seconds of importing torch, in which any outgoing connection could take an ephemeral port.
RENDEZVOUS_PORTS = range(20000, 32768)
LOOPBACK = "127.0.0.1"
GROUP, GROUPS = "REFBERT_GROUP", "REFBERT_GROUPS"
"""Environment variables of a stage that runs as several independent groups; set by whoever starts them."""


@dataclass(frozen=True)
class World:
    """Place of this process: ``rank`` of ``size``, and ``local_rank`` on its machine (all counted from 0).

    The processes of a world work in lockstep. Stages whose work falls into shards run as several worlds that know
    nothing of each other: then this world is ``group`` of ``groups``.
    """

    rank: int
    size: int
    local_rank: int
    group: int = 0
    groups: int = 1

    @property
    def number(self) -> int:
        """Number of this process among those of all groups."""
        return self.group * self.size + self.rank

    @property
    def is_main(self) -> bool:
        """True in the one process that writes logs, metrics and results."""
        return self.rank == 0 and self.group == 0

    def share_start(self, items: int) -> int:
        """Where this group begins in a list that all groups work through, so that they seldom meet."""
        return items * self.group // self.groups

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Read RANK, WORLD_SIZE and LOCAL_RANK; a process without any of them is alone.

        Raises :class:`UserError` when they are incomplete or no place in a world.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        group, groups = int(environment.get(GROUP, "0")), int(environment.get(GROUPS, "1"))
        if not any(name in environment for name in names):
            return cls(rank=0, size=1, local_rank=0, group=group, groups=groups)
        values = []
        for name in names:
            text = environment.get(name, "")
            if not text.isdecimal():
                raise UserError(
                    f"environment variable {name} is {text!r} but must be a number when one of {', '.join(names)} is "
                    "set; start the process with torchrun or refbert, or unset all three"
                )
            values.append(int(text))
        rank, size, local_rank = values
        if rank >= size:
            raise UserError(
                f"environment variable RANK is {rank} but WORLD_SIZE is {size}; RANK counts from 0 to WORLD_SIZE - 1"
            )
        return cls(rank, size, local_rank, group, groups)


def rendezvous(rank: int, size: int, port: int, local_rank: int, address: str = LOOPBACK) -> dict[str, str]:
    """The five environment variables by which the processes of a job find each other.

    DeepSpeed falls back to MPI discovery when one of them is missing, so all five are set even for a single process.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A TCP port of this machine on which nothing listens now."""
    for port in random.SystemRandom().sample(RENDEZVOUS_PORTS, k=100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(
        f"none of 100 ports tried in {RENDEZVOUS_PORTS.start}-{RENDEZVOUS_PORTS.stop - 1} is free for the rendezvous; "
        "end the programs that hold them"
    )
