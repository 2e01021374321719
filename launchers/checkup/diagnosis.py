"""What the report of a node means for jobs of a profile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launchers.checkup.checks import Check
from launchers.checkup.probe import NodeReport, hub_cache, versions
from launchers.profile import Resources, SlurmProfile

CLOCK_SKEW_S = 5.0
"""By which clocks may differ unnoticed."""
TEMPORARY_GB = 1.0
"""What libraries may want for temporary files."""


@dataclass(frozen=True)
class Circumstances:
    """What was known here when the probe was sent."""

    folder: Path
    """Of the probe, which the node was to see."""
    left: str
    """What was written there for the node."""
    sent_at: float
    """Seconds since the epoch, by the clock of this machine."""
    received_at: float
    scontrol: bool
    """Whether the batch script on the node found scontrol."""
    resources: Resources
    """What the probe asked for."""


def diagnose(report: NodeReport, profile: SlurmProfile, around: Circumstances) -> Iterator[Check]:
    """One check after the other."""
    yield _folder(report, around)
    yield from _python(report, profile)
    yield _requeue(around)
    yield _processors(report, around.resources)
    if around.resources.gpus_per_node or report.gpus:
        yield _gpus(report, around.resources)
    yield _hub(report, profile)
    yield from _interface(report, profile)
    yield from _folders(report, profile)
    yield from _temporary(report)
    yield from _clock(report, around)


def _folder(report: NodeReport, around: Circumstances) -> Check:
    here = around.folder.parent
    if report.read != around.left:
        text = (
            f"{report.host} does not see what is written here in {here}; put run.dir and cache.dir in a shared folder"
        )
        return Check("MISSING", "node: folder", text)
    return Check("ok", "node: folder", f"{report.host} reads and writes in {here}")


def _python(report: NodeReport, profile: SlurmProfile) -> Iterator[Check]:
    where = f"{profile.container or ''} {profile.python or sys.executable}".strip()
    if report.failures:
        reasons = "; ".join(f"import {module}: {reason}" for module, reason in report.failures.items())
        yield Check(
            "MISSING", "node: python", f"{where} cannot {reasons}; install it there, or set python or container"
        )
        return
    absent = [name for name, version in report.versions.items() if version is None]
    if absent:
        yield Check("MISSING", "node: python", f"{where} has no {', '.join(absent)}; install what is missing there")
        return
    here = versions()
    others = [f"{name} {found} (here {here[name]})" for name, found in report.versions.items() if found != here[name]]
    known = f"torch {report.versions['torch']}, deepspeed {report.versions['deepspeed']}"
    if others:
        yield Check("note", "node: python", f"{report.python}; other versions than here: {', '.join(others)}")
    else:
        yield Check("ok", "node: python", f"{report.python}, {known}; all versions are those that are installed here")


def _requeue(around: Circumstances) -> Check:
    if around.scontrol:
        return Check("ok", "node: scontrol", "is there, so a job that is stopped or crashes is queued again")
    text = "is not on PATH there, so no job is queued again when it is stopped or crashes; add it to PATH in setup"
    return Check("MISSING", "node: scontrol", text)


def _processors(report: NodeReport, asked: Resources) -> Check:
    text = f"{report.cores} cores for a process, {report.memory_gb:.0f} GB of memory in all"
    if report.cores < asked.cpus_per_task:
        return Check(
            "note", "node: cores", f"{text}; cpus_per_task is {asked.cpus_per_task}, so its threads share cores"
        )
    return Check("ok", "node: cores", text)


def _gpus(report: NodeReport, asked: Resources) -> Check:
    if report.gpu_failure:
        return Check(
            "MISSING", "node: GPUs", f"{report.gpu_text}, but {report.gpu_failure}; install a torch that fits them"
        )
    if not report.gpus:
        text = f"{report.gpu_text}; install torch for CUDA, or let the container see GPUs (apptainer exec --nv)"
        return Check("MISSING", "node: GPUs", text)
    if not asked.gpus_per_node:
        return Check("note", "node: GPUs", f"{report.gpu_text}; set gpus_per_node to use them")
    return Check("ok", "node: GPUs", report.gpu_text)


def _hub(report: NodeReport, profile: SlurmProfile) -> Check:
    way = "the hub can be reached" if report.reaches_hub else "the hub cannot be reached"
    if profile.offline:
        return Check("ok", "node: hub", f"{way}, and jobs do not try (offline: true)")
    if report.reaches_hub:
        return Check("ok", "node: hub", way)
    return Check("MISSING", "node: hub", f"{way}: set offline: true, and hub names are fetched before submission")


def _interface(report: NodeReport, profile: SlurmProfile) -> Iterator[Check]:
    there = ", ".join(report.interfaces)
    if profile.interface:
        absent = [name for name in profile.interface.split(",") if name not in report.interfaces]
        if absent:
            yield Check(
                "MISSING", "node: network", f"interface is '{profile.interface}', but {report.host} has {there}"
            )
        else:
            yield Check("ok", "node: network", f"has the interface {profile.interface}")
    elif not report.address or report.address.startswith("127."):
        address = f"stands for {report.address}" if report.address else "is not known"
        text = f"the name {report.host} {address} there; if jobs of several nodes hang, set interface: {there}"
        yield Check("note", "node: network", text)


def _folders(report: NodeReport, profile: SlurmProfile) -> Iterator[Check]:
    for folder in profile.shared_folders:
        if not report.seen[str(folder.absolute())]:
            yield Check("MISSING", "node: folders", f"shared_folders has {folder}, which {report.host} does not have")
    here, there = hub_cache(), report.hub_cache
    if there != here or (Path(here).is_dir() and not report.seen[here]):
        looks = f"looks in {there}" if there != here else "does not see that folder"
        text = f"hub names are fetched here into {here}, but {report.host} {looks}; "
        yield Check("note", "node: HF_HOME", text + "set HF_HOME here and in environment to one that both see")
    else:
        yield Check("ok", "node: HF_HOME", f"{there}, where hub names are fetched to here")


def _temporary(report: NodeReport) -> Iterator[Check]:
    text = f"{report.temporary_free_gb:.1f} GB free in {report.temporary}"
    short = report.temporary_free_gb < TEMPORARY_GB
    yield Check("note" if short else "ok", "node: disk", f"{text}; set TMPDIR in environment" if short else text)


def _clock(report: NodeReport, around: Circumstances) -> Iterator[Check]:
    behind, ahead = around.sent_at - report.time_s, report.time_s - around.received_at
    if max(behind, ahead) > CLOCK_SKEW_S:
        way = f"{behind:.0f} s behind" if behind > 0 else f"{ahead:.0f} s ahead of"
        yield Check("note", "node: clock", f"is {way} the one here, so the ages that refbert status shows are wrong")
