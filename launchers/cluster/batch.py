"""From a profile to a batch script, through submitit: the only module that imports it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launchers.profile import Resources, SlurmProfile
from refbert_dist.engine.processes import library_environment

if TYPE_CHECKING:
    from submitit import SlurmExecutor

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

# What the batch script does once srun has ended. A process that ends for a reason that it can explain leaves a report
# with exit code 1 or 2: then another start would end alike. Whatever else went wrong (told to stop, crashed, killed,
# lost its peers), the job is queued again; it is the job itself that gives up, at its start, when it gets no further.
# SLURM may have given this node up while it was alive, and have started the job elsewhere: that start is left alone.
AT_THE_END = """\
refbert_code=$?
refbert_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
refbert_job=${refbert_job:-$SLURM_JOB_ID}
if [ $refbert_code -ne 0 ]; then
    if grep -qs '"exit_code": [12]\\b' @REPORTS@; then
        refbert_code=1  # Others may have been stopped for it, with a higher code.
    elif scontrol show job --oneliner "$refbert_job" | grep -q " Restarts=${SLURM_RESTART_COUNT:-0} "; then
        echo "refbert: exit code $refbert_code; job $refbert_job is queued again"
        scontrol requeue "$refbert_job" && sleep 60  # SLURM ends this script
    fi
fi"""
# The other jobs of an array would only start to find that nothing is left to do.
ALL_DONE = """\
if [ $refbert_code -eq 0 ]; then scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"; fi"""


class Work(Protocol):
    """What a job does: submitit stores it, and calls it on the nodes with the job's number in its array."""

    def __call__(self, element: int, /) -> int:
        """Do the part of this process of job ``element``."""


@dataclass(frozen=True)
class Batch:
    """How a stage is submitted."""

    name: str
    """Of the jobs, in SLURM's lists."""
    folder: Path
    """Gets scripts, submitit's own files and what SLURM says; all nodes must see it."""
    reports: str
    """Pattern of the files in which processes explain how they failed, quoted for the shell."""
    code: Path
    """Folder from which the job imports the toolkit."""
    profile: SlurmProfile
    resources: Resources
    nodes: int
    """Of each job."""
    tasks: int
    """Processes on each node."""
    elements: int = 1
    """Jobs; several are an array."""
    stands_together: bool = True
    """The end of one process is the end of all of the job."""
    after: tuple[str, ...] = ()
    """Dependencies, as sbatch takes them: ``afterok:123``."""

    def script(self) -> str:
        """The batch script, as it would be sent."""
        executor = self._executor()
        if self.elements > 1:
            executor.parameters["map_count"] = self.elements
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def submit(self, work: Work) -> str:
        """Hand it to SLURM; returns the number of the job or array. Raises :class:`SubmissionError`."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env

        executor = self._executor()
        try:
            with contextlib.ExitStack() as around:
                # submitit repeats what sbatch says, which the error says as well.
                around.enter_context(contextlib.redirect_stderr(io.StringIO()))
                if "SLURM_JOB_ID" in os.environ:
                    # Submitted from inside another job, its variables would speak for this one.
                    around.enter_context(clean_env())
                jobs = executor.map_array(work, range(self.elements))
        except (FailedJobError, FailedSubmissionError) as error:
            raise SubmissionError(scheduler_words(str(error))) from error
        return str(jobs[0].job_id).split("_")[0]

    def _executor(self) -> SlurmExecutor:
        from submitit import SlurmExecutor

        profile = self.profile
        python = shlex.quote(profile.python or sys.executable)
        executor = SlurmExecutor(self.folder, python=f"{profile.container} {python}" if profile.container else python)
        executor.update_parameters(**self._parameters())
        return executor

    def _parameters(self) -> dict[str, Any]:
        asked, profile = self.resources, self.profile
        gpus: int | str | None = asked.gpus_per_node or None
        return {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": asked.cpus_per_task,
            "gpus_per_node": f"{asked.gpu_type}:{gpus}" if gpus and asked.gpu_type else gpus,
            "time": asked.time_min,
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "constraint": asked.constraint,
            "signal_delay_s": profile.signal_delay_s,
            "array_parallelism": asked.array_parallelism or self.elements,
            "stderr_to_stdout": True,
            # submitit's own key would be refused where a site knows other ones.
            "wckey": None,
            "setup": [
                *profile.setup,
                *(f"export {name}={shlex.quote(value)}" for name, value in self._environment().items()),
                f"export PYTHONPATH={shlex.quote(str(self.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
                # Python would first look in the folder of submission, which may hold the toolkit's own, edited code.
                "export PYTHONSAFEPATH=1",
                # It is for the processes; undisturbed, the script sees how they end.
                "trap : USR2",
            ],
            "teardown": self._teardown(),
            "srun_args": [
                # srun of some versions does not take this over from sbatch.
                f"--cpus-per-task={asked.cpus_per_task}",
                f"--kill-on-bad-exit={int(self.stands_together)}",
                *profile.srun,
            ],
            "dependency": ",".join(self.after) or None,
            "additional_parameters": {
                "requeue": True,
                **({"kill-on-invalid-dep": "yes"} if self.after else {}),
                **asked.sbatch,
            },
            "mem": f"{round(asked.memory_gb * 1024)}M" if asked.memory_gb else None,
        }

    def _environment(self) -> dict[str, str]:
        profile = self.profile
        wires = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if profile.interface else ()
        return {
            **library_environment(self.resources.cpus_per_task),
            **dict.fromkeys(wires, str(profile.interface)),
            **(OFFLINE if profile.offline else {}),
            **profile.environment,
        }

    def _teardown(self) -> list[str]:
        lines = AT_THE_END.replace("@REPORTS@", self.reports).splitlines()
        return [*lines, *(ALL_DONE.splitlines() if self.elements > 1 else []), "exit $refbert_code"]


class SubmissionError(Exception):
    """SLURM did not take a job; the message is its own."""


def scheduler_words(text: str) -> str:
    """The part of sbatch's message that says why."""
    lines = [re.sub(r"^.*(sbatch|slurm): ?(error|fatal): ?", "", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Traceback", "subprocess", "Command"))]
    return said[-1].removeprefix("Batch job submission failed: ") if said else text.strip()


def hostnames() -> Sequence[str]:
    """The nodes of the job that this process belongs to."""
    from submitit import JobEnvironment

    found: Sequence[str] = JobEnvironment().hostnames
    return found


def again(work: Work, arguments: Iterable[int]) -> Any:
    """What submitit asks of a job that it queues again itself: the same."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(work, *arguments)
