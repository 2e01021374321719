"""Where a command runs: ``--on PROFILE``, a built-in name or a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from refbert_dist.config import parse_model, read_yaml
from refbert_dist.config.schema import NonNegative, Positive, Section
from refbert_dist.errors import UserError, did_you_mean
from refbert_dist.pipeline import BY_NAME

Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]


class LocalProfile(Section):
    """This machine."""

    cluster: Literal["local", "in-process"] = "local"
    """``local``: every stage in processes of its own; ``in-process``: inside the command itself, for a debugger."""
    processes: Positive | None = None
    """Processes to use instead of ``launch.processes``."""
    threads: Positive | None = None
    """CPU threads of each process, instead of ``launch.threads``."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the processes."""


class Resources(Section):
    """What a job asks of SLURM."""

    partition: Name | None = None
    """Partition; ``null`` is the cluster's default."""
    account: Name | None = None
    """Account that is charged."""
    qos: Name | None = None
    """Quality of service."""
    constraint: Name | None = None
    """Features that the nodes must have."""
    nodes: Positive = 1
    """Nodes. A stage whose shards are shared out (prepare, retrieve, cache) is an array of so many jobs of one node."""
    tasks_per_node: Positive | None = None
    """Processes on each node; ``null`` is one for each GPU, or one."""
    gpus_per_node: NonNegative = 0
    """GPUs on each node."""
    gpu_type: Name | None = None
    """Kind of GPU, as the cluster names it."""
    cpus_per_task: Positive = 1
    """Processor cores of each process, and its threads."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory on each node; ``null`` is the cluster's default."""
    time_min: Positive = 60
    """Time limit of a job. A job that reaches it saves, is queued again and continues."""
    array_parallelism: Positive | None = None
    """Jobs of an array that may run at the same time; ``null``: all."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other options of sbatch, by long name; ``true`` is a bare flag."""

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1


class SlurmProfile(Resources):
    """A SLURM cluster, as seen from a login node."""

    cluster: Literal["slurm"]
    """Kind of place."""
    stages: dict[str, Resources] = Field(default_factory=dict)
    """What single stages ask for instead, such as ``prepare: {partition: cpu, gpus_per_node: 0}``."""
    setup: tuple[str, ...] = ()
    """Shell lines that every job runs first, such as ``module load cuda``."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the jobs."""
    python: str | None = None
    """Python interpreter on the nodes; ``null`` is the one that submits."""
    container: str | None = None
    """Command before Python in every task, such as ``apptainer exec --nv image.sif``."""
    srun: tuple[str, ...] = ()
    """Options of srun, such as ``--container-image=image.sqsh``."""
    interface: Name | None = None
    """Network interface between nodes, for NCCL and gloo; ``null`` lets them choose."""
    offline: bool = True
    """The nodes have no network: hub names are fetched here beforehand, and jobs never try to reach the hub."""
    shared_folders: tuple[Path, ...] = ()
    """Folders that all nodes see; if given, run.dir and cache.dir must lie in one of them."""
    signal_delay_s: Positive = 120
    """Seconds before the time limit at which a job is told to save; a step and a checkpoint must fit in."""
    restarts: NonNegative = 2
    """Crashes in a row, of a job that gets no further in between, after which it is not queued again."""

    @model_validator(mode="after")
    def _fits(self) -> SlurmProfile:
        for where, found in self._all():
            if self.signal_delay_s >= found.time_min * 60:
                raise ValueError(
                    f"signal_delay_s is {self.signal_delay_s}, but {where}time_min is {found.time_min}; give the job "
                    "more time, or be warned later"
                )
        for name in self.stages:
            if name not in BY_NAME:
                raise ValueError(f"stages.{name} is not a stage{did_you_mean(name, BY_NAME)}")
        return self

    def _all(self) -> Iterator[tuple[str, Resources]]:
        yield "", self
        for name in self.stages:
            yield f"stages.{name}.", self.resources(name)

    def resources(self, stage: str) -> Resources:
        """What a stage asks for."""
        own = {name: getattr(self, name) for name in Resources.model_fields}
        given = self.stages[stage].model_dump(exclude_unset=True) if stage in self.stages else {}
        return Resources(**{**own, **given})


Profile = LocalProfile | SlurmProfile

BUILT_IN = {"local": LocalProfile(), "in-process": LocalProfile(cluster="in-process")}
KINDS: dict[str, type[LocalProfile] | type[SlurmProfile]] = {
    "local": LocalProfile,
    "in-process": LocalProfile,
    "slurm": SlurmProfile,
}


def load_profile(name: str) -> Profile:
    """The built-in profile of that name, or the one in that YAML file."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.exists():
        near = did_you_mean(name, BUILT_IN)
        raise UserError(
            f"--on is '{name}', which is neither a built-in profile ({', '.join(BUILT_IN)}) nor a YAML file{near}"
        )
    data = read_yaml(path)
    return parse_model(KINDS[_kind(path, data)], data)


def _kind(path: Path, data: dict[str, Any]) -> str:
    if "cluster" not in data and (asked := sorted(set(data) & set(SlurmProfile.model_fields) - {"environment"})):
        raise UserError(f"cluster is missing in {path}, which sets {asked[0]}; write cluster: slurm")
    kind = data.get("cluster", "local")
    if kind not in KINDS:
        raise UserError(f"cluster is {kind!r} in {path}; write {' or '.join(KINDS)}{did_you_mean(str(kind), KINDS)}")
    return str(kind)
