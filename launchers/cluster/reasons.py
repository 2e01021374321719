"""SLURM's codes in plain words: why a job waits, and how it ended."""

from __future__ import annotations

import signal

IN_VAIN = "cannot start, because "
"""How the words for a job begin that waits in vain."""

REASONS = {
    "": "the scheduler has not looked at it yet",
    "Resources": "waits for free nodes",
    "Priority": "jobs of a higher priority go first",
    "Dependency": "waits for the stages before it",
    "DependencyNeverSatisfied": IN_VAIN + "a job that it waits for did not end well",
    "BeginTime": "may start in a moment: SLURM lets a job that is queued again wait for up to two minutes",
    "JobArrayTaskLimit": "as many jobs of its array run as may at a time (array_parallelism)",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation to begin",
    "Prolog": "its nodes are being prepared",
    "Cleaning": "what its last start has left is being cleaned up",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts no jobs at present",
    "NodeDown": "a node that it needs is down",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "PartitionTimeLimit": IN_VAIN + "it asks for more time than its partition allows; cancel it and lower time_min",
    "PartitionNodeLimit": IN_VAIN + "its partition has or allows fewer nodes; cancel it and lower nodes",
    "PartitionConfig": IN_VAIN + "its partition does not offer what it asks for; cancel it and ask for less",
    "BadConstraints": IN_VAIN + "no node has the features of its constraint; cancel it and change constraint",
    "InvalidAccount": IN_VAIN + "its account is not valid; cancel it and change account",
    "InvalidQOS": IN_VAIN + "its quality of service is not valid; cancel it and change qos",
    "AccountNotAllowed": IN_VAIN + "its partition does not take its account; cancel it and change account",
    "QOSNotAllowed": IN_VAIN + "its partition does not take its quality of service; cancel it and change qos",
    "JobHeldUser": IN_VAIN + "it is held; let it go with scontrol release",
    "JobHeldAdmin": IN_VAIN + "an administrator holds it; ask them, or try scontrol release",
    "JobHoldMaxRequeue": IN_VAIN + "it was queued again too often and is held; let it go with scontrol release",
    "launchfailedrequeuedheld": IN_VAIN
    + "its nodes could not start it and it is held; let it go with scontrol release",
}
"""By SLURM's word, without spaces and underscores."""

ENDINGS = {
    "TIMEOUT": "its time was up before it had stopped; give it more (time_min), or warn it earlier (signal_delay_s)",
    "OUT_OF_MEMORY": "it took more memory than it had asked for; ask for more (memory_gb), or use fewer processes",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node could not be started",
    "DEADLINE": "its deadline has passed",
    "PREEMPTED": "it had to make room for another job and was not queued again",
    "CANCELLED": "it was cancelled by hand",
    "COMPLETED": "its processes ended well, but without leaving the result of the stage",
}
"""By the state in which a job ended."""


def in_words(reason: str) -> str:
    """Why a job waits; a reason that is not known here stays as it is."""
    # "ReqNodeNotAvail, UnavailableNodes:n[3-4]": what follows the word is worth showing.
    word, _, details = reason.partition(",")
    key = word.strip("()").replace(" ", "").replace("_", "")
    if key in REASONS:
        return REASONS[key] + (f" ({details.strip()})" if details else "")
    if "not permitted" in reason:
        return (
            IN_VAIN
            + reason.replace("Job's", "its").replace(" not ", " is not ", 1)
            + "; cancel it and change the profile"
        )
    if key.startswith("Assoc"):
        return f"a limit of its account is reached ({reason})"
    if key.startswith(("QOS", "Max")):
        return f"a limit of its quality of service is reached ({reason})"
    return reason


def waits_in_vain(reason: str) -> bool:
    """Whether somebody must do something before a job that waits for this reason can start."""
    return in_words(reason).startswith(IN_VAIN)


def ending_in_words(state: str, exit_code: str) -> str:
    """How a job ended that SLURM shows in this state with this exit code (``1:0``: code, signal)."""
    if state in ENDINGS:
        return ENDINGS[state]
    if exit_code == "0:53":
        return "its node could not write the files of the job, so it probably does not see the run directory"
    code, _, number = exit_code.partition(":")
    if number not in ("", "0"):
        return f"it was ended by signal {number}{_signal_name(int(number))}"
    if code.isdecimal() and int(code) > 128:
        return f"a process was ended by signal {int(code) - 128}{_signal_name(int(code) - 128)}"
    return f"it ended with exit code {code}" if code else f"SLURM says {state}"


def _signal_name(number: int) -> str:
    return f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
