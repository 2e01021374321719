"""Would SLURM ever start these jobs? Asked before anything is submitted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from launchers.cluster import scheduler
from launchers.cluster.batch import Batch
from launchers.cluster.scheduler import Partition, Verdict
from launchers.profile import Resources, SlurmProfile
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError, did_you_mean


def check_folders(exp: Experiment, profile: SlurmProfile) -> None:
    """Raise :class:`UserError` when the run or the cache lies where the profile says the nodes cannot see it."""
    if not profile.shared_folders:
        return
    for name, folder in (("run.dir", exp.run.dir), ("cache.dir", exp.cache.dir)):
        where = folder.resolve()
        if not any(where.is_relative_to(shared.resolve()) for shared in profile.shared_folders):
            seen = ", ".join(map(str, profile.shared_folders))
            raise UserError(f"{name} is '{folder}', which the nodes cannot see; choose a folder in {seen}")


def verdicts(batches: Mapping[str, Batch]) -> dict[str, Verdict]:
    """What SLURM says to each stage's job, or what would keep it waiting for ever; nothing is submitted."""
    partitions = scheduler.partitions()
    said: dict[str, Verdict] = {}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, batch in batches.items():
            obstacle = _obstacle(batch, partitions)
            script = batch.script()
            # Stages that ask for the same get the same answer; only names and paths tell their scripts apart.
            asked = "\n".join(line for line in script.splitlines() if line.startswith("#SBATCH") and "/" not in line)
            asked = asked.replace(batch.name, "")
            if obstacle is None and asked not in said:
                path = Path(folder) / "job.sh"
                path.write_text(script, encoding="utf-8")
                said[asked] = scheduler.test_only(path)
            found[stage] = Verdict(False, obstacle) if obstacle else said[asked]
    return found


def admit(batches: Mapping[str, Batch]) -> None:
    """Raise :class:`UserError` with SLURM's reason when one of these jobs would be refused, or never start."""
    for stage, verdict in verdicts(batches).items():
        if not verdict.accepted:
            raise UserError(
                f"SLURM would not run the job of {stage}: {verdict.text}; nothing was submitted, change the profile"
            )


def _obstacle(batch: Batch, partitions: Mapping[str, Partition]) -> str | None:
    """What ``sbatch --test-only`` lets through although the job would wait for ever."""
    asked = batch.resources
    partition = _partition(asked.partition, partitions)
    if partition is None:
        return None
    if not partition.is_up:
        return f"partition {partition.name} is down"
    if partition.max_time_min is not None and asked.time_min > partition.max_time_min:
        limit = f"{partition.max_time_min:.0f} min"
        return f"time_min is {asked.time_min}, but jobs of partition {partition.name} may take at most {limit}"
    most = min(partition.nodes, partition.max_nodes or partition.nodes)
    if batch.nodes > most:
        return f"nodes is {batch.nodes}, but jobs of partition {partition.name} may use at most {most}"
    allowed = partition.allow_accounts
    if allowed is not None and (asked.account or scheduler.default_account()) not in allowed:
        given = f"account is '{asked.account}'" if asked.account else "account is not set"
        return f"{given}, but partition {partition.name} takes jobs of {', '.join(allowed)} only"
    return next(shortfalls(asked, batch.tasks, partition), None)


def shortfalls(asked: Resources, tasks: int, partition: Partition) -> Iterator[str]:
    """What no node of the partition has, in the words of the profile."""
    nodes = f"the nodes of partition {partition.name} have at most"
    cores = tasks * asked.cpus_per_task
    if cores > partition.max_cpus_per_node:
        yield (
            f"tasks_per_node x cpus_per_task is {tasks} x {asked.cpus_per_task} = {cores}, but {nodes} "
            f"{partition.max_cpus_per_node} cores"
        )
    if (asked.memory_gb or 0) * 1024 > partition.memory_mb:
        yield f"memory_gb is {asked.memory_gb:g}, but {nodes} {partition.memory_mb / 1024:.4g}"
    if asked.gpus_per_node > partition.gpus_per_node:
        yield f"gpus_per_node is {asked.gpus_per_node}, but {nodes} {partition.gpus_per_node}"


def _partition(name: str | None, partitions: Mapping[str, Partition]) -> Partition | None:
    if name is None:
        return next((partition for partition in partitions.values() if partition.default), None)
    found = [partitions.get(part) for part in name.split(",")]
    if None in found:
        raise UserError(
            f"partition is '{name}', which this cluster does not have{did_you_mean(name, partitions)}; "
            f"it has {', '.join(partitions)}"
        )
    # Of several, the one that starts first is taken: no single limit holds.
    return found[0] if len(found) == 1 else None
