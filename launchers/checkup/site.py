"""How a cluster is set up, as far as SLURM tells."""

from __future__ import annotations

import re

from launchers.cluster import scheduler
from refbert_dist.errors import RefusedError


def configuration() -> dict[str, str]:
    """SLURM's settings by name, as ``scontrol`` shows them. Raises :class:`RefusedError` if it does not answer."""
    return dict(re.findall(r"^(\w+) *= (.*)$", scheduler.output_of("scontrol", "show", "config"), re.MULTILINE))


def partition_settings(name: str) -> dict[str, str]:
    """A partition's settings by name. Raises :class:`RefusedError` if SLURM does not answer."""
    shown = scheduler.output_of("scontrol", "--oneliner", "show", "partition", name)
    return {key: value for key, _, value in (item.partition("=") for item in shown.split())}


def accounting_problem() -> str | None:
    """Why accounting does not tell how jobs have ended; None where it does."""
    try:
        done = scheduler.ask("sacct", "--allocations", "--noheader", "--starttime=now", patience_s=0)
    except RefusedError as error:
        return str(error)
    return scheduler.words_of(done) if done.returncode else None
