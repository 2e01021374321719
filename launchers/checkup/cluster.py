"""``refbert doctor --on`` a SLURM profile: what can be found out from a login node, and by one small job."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from launchers.checkup.checks import Check
from launchers.checkup.site import accounting_problem, configuration, partition_settings
from launchers.checkup.trial import try_job
from launchers.cluster import scheduler
from launchers.cluster.admission import shortfalls, verdicts
from launchers.cluster.chain import Link, link_of
from launchers.cluster.launch import batches_of
from launchers.cluster.scheduler import Partition, Verdict
from launchers.profile import SlurmProfile
from launchers.readable import duration
from refbert_dist.config import parse_experiment
from refbert_dist.errors import RefusedError
from refbert_dist.pipeline import STAGES

CHECKS = (
    "SLURM's commands, submitit, controller, accounting, what the stages ask for, arrays, requeueing, preemption; and "
    "by one small job on a node: folder, python, scontrol, cores, GPUs, hub, network, HF_HOME, disk, clock"
)
COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")


def check_cluster(profile: SlurmProfile) -> Iterator[Check]:
    """Look at everything that jobs of this profile will need; a job of a few seconds runs on a node.

    Raises :class:`UserError` when the profile names what the cluster does not have.
    """
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        text = f"{', '.join(absent)} are not on PATH: run refbert on a login node, or load the module that has SLURM"
        yield Check("MISSING", "commands", text)
        return
    yield Check("ok", "commands", ", ".join(COMMANDS))
    try:
        yield Check("ok", "submitit", importlib.metadata.version("submitit"))
    except importlib.metadata.PackageNotFoundError:
        yield Check("MISSING", "submitit", "not installed: pip install submitit (submission)")
        return
    try:
        settings = configuration()
    except RefusedError as error:
        yield Check("MISSING", "controller", str(error))
        return
    yield Check("ok", "controller", f"{settings['ClusterName']} answers: SLURM {settings['SLURM_VERSION']}")
    yield _accounting()
    if not os.access(Path.cwd(), os.W_OK):
        yield Check("note", "jobs", f"nothing was asked of SLURM, because {Path.cwd()} is not writable")
        return
    folder = Path(tempfile.mkdtemp(prefix=".refbert-doctor-", dir=Path.cwd()))
    try:
        yield from _check_jobs(profile, folder, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _accounting() -> Check:
    problem = accounting_problem()
    if problem is None:
        return Check("ok", "accounting", "sacct tells how jobs have ended")
    lost = "how a job ended is known for some minutes only, and afterwards from what the run directory says"
    return Check("note", "accounting", f"sacct does not answer ({problem}): {lost}")


def _check_jobs(profile: SlurmProfile, folder: Path, settings: Mapping[str, str]) -> Iterator[Check]:
    # The smallest experiment, because jobs are made from one; nothing of it is read.
    exp = parse_experiment({"run": {"dir": folder}, "teacher": {"model": "."}, "corpus": {"path": "."}})
    chain = [link_of(exp, profile, stage) for stage in STAGES]
    answers = verdicts(batches_of(exp, profile, chain))
    partitions = scheduler.partitions()
    for links in _alike(chain):
        yield _asked(links, partitions, answers[links[0].stage.name])
    yield from _arrays(chain, settings)
    if settings["JobRequeue"] == "0":
        yield Check(
            "note", "requeueing", "off by default here; jobs are sent with --requeue, which turns it on for them"
        )
    for name in dict.fromkeys(_partition_name(link, partitions) for link in chain):
        if name in partitions:
            yield preemption(partition_settings(name), settings)
    yield from try_job(exp, profile)


# -- what the stages ask for -------------------------------------------------------------------------------------------


def _alike(chain: Iterable[Link]) -> list[list[Link]]:
    """Links that ask SLURM for the same, together."""
    groups: dict[object, list[Link]] = {}
    for link in chain:
        other = link.resources.model_dump_json(exclude={"nodes", "tasks_per_node", "array_parallelism"})
        asked = (other, link.elements, link.nodes, link.tasks)
        groups.setdefault(asked, []).append(link)
    return list(groups.values())


def _asked(links: list[Link], partitions: Mapping[str, Partition], answer: Verdict) -> Check:
    first = links[0]
    partition = partitions.get(_partition_name(first, partitions))
    problems = list(shortfalls(first.resources, first.tasks, partition)) if partition else []
    if not answer.accepted and answer.text not in problems:
        problems.append(answer.text)
    where = ", ".join(link.stage.name for link in links)
    if problems:
        return Check("MISSING", "jobs", f"{where}: {'; '.join(problems)}")
    start = re.search(r"to start at (\S+)", answer.text)
    when = f"SLURM would take it and start it at {start[1]}" if start else answer.text
    return Check("ok", "jobs", f"{where}: {_size(first)}; {when}")


def _partition_name(link: Link, partitions: Mapping[str, Partition]) -> str:
    """The partition that a job goes to; several names stay as they are."""
    default = next((partition.name for partition in partitions.values() if partition.default), "")
    return link.resources.partition or default


def _size(link: Link) -> str:
    asked = link.resources
    jobs = f"{link.elements} jobs of " if link.elements > 1 else ""
    parts = [
        f"{_count(link.nodes, 'node')} x {_count(link.tasks, 'process', 'es')} x {_count(asked.cpus_per_task, 'core')}",
        *([f"{_count(asked.gpus_per_node, 'GPU')} a node"] if asked.gpus_per_node else []),
        *([f"{asked.memory_gb:g} GB a node"] if asked.memory_gb else []),
        duration(asked.time_min * 60),
    ]
    return jobs + ", ".join(parts)


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number > 1 else ''}"


# -- what the cluster allows -------------------------------------------------------------------------------------------


def _arrays(chain: Iterable[Link], settings: Mapping[str, str]) -> Iterator[Check]:
    longest = max(chain, key=lambda link: link.elements)
    most = int(settings["MaxArraySize"])
    if longest.elements > most:
        name = longest.stage.name
        text = f"{name} is an array of {longest.elements} jobs, but {most} are allowed; set stages.{name}.nodes: {most}"
        yield Check("MISSING", "arrays", text)
    elif longest.elements > 1:
        yield Check("ok", "arrays", f"of {longest.elements} jobs; {most} are allowed")


def preemption(partition: Mapping[str, str], settings: Mapping[str, str]) -> Check:
    """How jobs of a partition make room for others, by the settings of the partition and of the cluster."""
    name, mode = partition["PartitionName"], partition["PreemptMode"]
    if settings["PreemptType"].endswith("/none") or mode == "OFF":
        return Check("ok", "preemption", f"jobs of partition {name} do not make room for others")
    if "CANCEL" in mode:
        text = f"jobs of partition {name} are cancelled to make room for others; go on with refbert resume"
        return Check("note", "preemption", text)
    if "REQUEUE" in mode:
        grace, wait = partition["GraceTime"], settings["KillWait"].split()[0]
        text = f"jobs of partition {name} make room for others: told to save {grace} + {wait} s before (GraceTime + "
        return Check("ok", "preemption", text + "KillWait), they are queued again and continue")
    return Check("ok", "preemption", f"jobs of partition {name} make room for others: {mode}")
