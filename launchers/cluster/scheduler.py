"""What SLURM knows and does, through its commands: the only module that runs them."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launchers.cluster.formats import (
    ACCOUNT_FIELDS,
    NODE_FIELDS,
    QUEUE_FIELDS,
    JobInfo,
    Partition,
    parse_accounting,
    parse_partitions,
    parse_queue,
)
from launchers.cluster.reasons import in_words
from refbert_dist.errors import RefusedError, UserError

__all__ = [
    "JobInfo",
    "Partition",
    "Verdict",
    "accounted",
    "ask",
    "cancel",
    "default_account",
    "in_words",
    "jobs",
    "output_of",
    "partitions",
    "queued",
    "require_slurm",
    "test_only",
    "words_of",
]

TIMEOUT_S = 30.0
PATIENCE_S = 15.0
"""How long a controller that does not answer is asked again: it may be starting."""
RETRY_S = 1.0

UNREACHABLE = re.compile(
    "Unable to contact slurm controller|Connection (refused|reset|timed out)|timed out on send/recv|Zero Bytes",
    re.IGNORECASE,
)
UNKNOWN_JOB = "Invalid job id specified"


@dataclass(frozen=True)
class Verdict:
    """Whether SLURM would take a batch script."""

    accepted: bool
    text: str
    """In its own words."""


def require_slurm() -> None:
    """Raise :class:`UserError` where jobs cannot be submitted from this machine."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "the profile is one of SLURM, but sbatch is not on this machine; run refbert on a login node, or use "
            "--on local"
        )


# -- jobs --------------------------------------------------------------------------------------------------------------


def jobs(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """All that SLURM still knows of these jobs, by id; an array's number stands for all its jobs.

    The controller comes first: accounting lags behind it, and forgets later. What accounting calls running but the
    controller does not know has been lost on the way, and is left out.

    Raises :class:`RefusedError` if SLURM does not answer.
    """
    wanted = set(job_ids)
    found = _in_memory(wanted)
    past = accounted(wanted) if wanted - set(found) else {}
    return {**{job_id: info for job_id, info in past.items() if info.is_over}, **found}


def queued(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Those of these jobs that have not ended, as the controller sees them now.

    Raises :class:`RefusedError` if SLURM does not answer.
    """
    return {job_id: info for job_id, info in _in_memory(set(job_ids)).items() if not info.is_over}


def accounted(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """What accounting has kept of these jobs; nothing where there is none, or it does not answer."""
    wanted = set(job_ids)
    if not wanted:
        return {}
    form = ",".join(ACCOUNT_FIELDS)
    command = ("sacct", "--allocations", "--noheader", "--parsable2", f"--format={form}", f"--jobs={_numbers(wanted)}")
    try:
        done = ask(*command, patience_s=0)
    except RefusedError:
        return {}
    return _only(wanted, parse_accounting(done.stdout) if done.returncode == 0 else ())


def cancel(job_ids: Iterable[str]) -> None:
    """End these jobs; of those that have ended already nothing is said. Raises :class:`RefusedError`."""
    wanted = list(job_ids)
    if wanted:
        output_of("scancel", "--quiet", *wanted)


def _in_memory(wanted: set[str]) -> dict[str, JobInfo]:
    """What the controller has in its memory: all that has not ended, and for some minutes what has."""
    if not wanted:
        return {}
    # A field with an ending is as wide as it must be; without one it is cut at 20 characters.
    form = ",".join(f"{field}:|" for field in QUEUE_FIELDS)
    done = ask("squeue", "--noheader", "--array", "--states=all", f"--Format={form}", f"--jobs={_numbers(wanted)}")
    # Of a single job that is forgotten squeue says so; of several it leaves such out.
    if done.returncode and UNKNOWN_JOB not in done.stderr:
        raise RefusedError(f"SLURM does not answer: {words_of(done)}")
    return _only(wanted, parse_queue(done.stdout))


def _numbers(job_ids: Iterable[str]) -> str:
    """Of whole arrays, because asking for one job of an array that is unknown is an error."""
    return ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))


def _only(wanted: set[str], found: Iterable[JobInfo]) -> dict[str, JobInfo]:
    return {info.job_id: info for info in found if {info.job_id, info.job_id.partition("_")[0]} & wanted}


# -- partitions and scripts --------------------------------------------------------------------------------------------


def partitions() -> dict[str, Partition]:
    """Every partition of the cluster, by name. Raises :class:`RefusedError` if SLURM does not answer."""
    shown = output_of("scontrol", "--all", "--oneliner", "show", "partition")
    return parse_partitions(shown, output_of("sinfo", "--all", "--noheader", "--exact", f"--format={NODE_FIELDS}"))


def default_account() -> str | None:
    """The account that jobs of this person are charged to when they name none; None if it is not known."""
    done = ask("sacctmgr", "--noheader", "--parsable2", "show", "user", getpass.getuser(), "format=DefaultAccount")
    return done.stdout.strip() or None


def test_only(script: Path) -> Verdict:
    """Ask whether SLURM would take this batch script, and submit nothing.

    It says yes to some that would never start, such as one whose time is over its partition's.
    """
    done = ask("sbatch", "--test-only", str(script))
    return Verdict(done.returncode == 0, words_of(done))


# -- commands ----------------------------------------------------------------------------------------------------------


def output_of(*command: str) -> str:
    """What a command prints that has no reason to fail. Raises :class:`RefusedError` if it does."""
    done = ask(*command)
    if done.returncode:
        raise RefusedError(f"SLURM refused {command[0]}: {words_of(done)}")
    return done.stdout


def ask(*command: str, patience_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, for ``patience_s`` again while the controller cannot be reached.

    Raises :class:`RefusedError` if SLURM does not answer; that the command fails is the caller's to judge.
    """
    deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    while True:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, env=_environment()
            )
        except FileNotFoundError:
            raise RefusedError(f"SLURM does not answer: {command[0]} is not on this machine") from None
        except subprocess.TimeoutExpired:
            raise RefusedError(
                f"SLURM does not answer: {command[0]} was silent for {TIMEOUT_S:.0f} s; try again later"
            ) from None
        if done.returncode == 0 or not UNREACHABLE.search(done.stderr):
            return done
        if time.monotonic() >= deadline:
            raise RefusedError(f"SLURM does not answer: {words_of(done)}; try again later")
        time.sleep(RETRY_S)


def _environment() -> dict[str, str]:
    """Ours, in English, without the settings by which people narrow what these commands show."""
    own = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    # The numbers of an array's waiting jobs are cut after 64 characters otherwise.
    return {**kept, "LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}


def words_of(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a command says, without its name in front."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return (
        re.sub(r"^(\w+: (error: )?|allocation failure: )", "", lines[-1]) if lines else f"exit code {done.returncode}"
    )
