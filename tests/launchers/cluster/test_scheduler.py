"""What SLURM's commands print, read as they print it; the texts are those of SLURM 22.05."""

from dataclasses import replace

import pytest

from launchers.cluster import scheduler
from launchers.cluster.formats import JobInfo, Partition, parse_accounting, parse_partitions, parse_queue, seconds
from launchers.cluster.reasons import ending_in_words, in_words, waits_in_vain
from refbert_dist.errors import RefusedError, UserError

QUEUE = """\
13808858|N/A|PENDING|PartitionTimeLimit||0:00|0|0|
13808856|N/A|FAILED|NonZeroExitCode|n1|0:00|0|768|
13808857|N/A|FAILED|JobLaunchFailure|n2|0:00|0|4021|
13809957|0|CANCELLED|None|n1|0:02|0|15|
13809957|3|PENDING|JobArrayTaskLimit||0:00|0|0|
13809957|1|RUNNING|None|n1|1-02:00:03|0|0|
13809955|N/A|PENDING|BeginTime||0:00|1|0|
"""

ACCOUNTING = """\
13808858|PENDING|None assigned|0|0:0
13808856|FAILED|n1|0|3:0
13809957_0|CANCELLED by 0|n1|2|0:0
13809957_1|RUNNING|n1|3|0:0
13809957_[2,4-8:2%2]|PENDING|None assigned|0|0:0
"""

PARTITIONS = """\
PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE \
DisableRootJobs=NO ExclusiveUser=NO GraceTime=15 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO \
MaxCPUsPerNode=UNLIMITED Nodes=n[1-4] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO \
OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=16 TotalNodes=4 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=16,mem=16000M,node=4,billing=16,gres/gpu=8
PartitionName=debug AllowGroups=ALL AllowAccounts=lab,paid AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=1 MaxTime=00:02:00 MinNodes=0 \
LLN=NO MaxCPUsPerNode=2 Nodes=n1 PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO \
OverTimeLimit=NONE PreemptMode=OFF State=DOWN TotalCPUs=4 TotalNodes=1 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=4,mem=4000M,node=1,billing=4,gres/gpu=2
"""

NODES = "main|4|4000|gpu:2\nmain|64|512000|(null)\ndebug|4|4000|gpu:2\n"


def test_the_queue_is_read_job_by_job() -> None:
    assert list(parse_queue(QUEUE)) == [
        JobInfo("13808858", "PENDING", "PartitionTimeLimit", elapsed_s=0, restarts=0),
        JobInfo("13808856", "FAILED", nodes="n1", elapsed_s=0, restarts=0, exit_code="3:0"),
        JobInfo("13808857", "FAILED", nodes="n2", elapsed_s=0, restarts=0, exit_code="0:53"),
        JobInfo("13809957_0", "CANCELLED", nodes="n1", elapsed_s=2, restarts=0, exit_code="0:15"),
        JobInfo("13809957_3", "PENDING", "JobArrayTaskLimit", elapsed_s=0, restarts=0),
        JobInfo("13809957_1", "RUNNING", nodes="n1", elapsed_s=93603, restarts=0),
        JobInfo("13809955", "PENDING", "BeginTime", elapsed_s=0, restarts=1),
    ]


def test_an_exit_code_that_is_written_out_stays() -> None:
    (info,) = parse_queue("7|N/A|FAILED|NonZeroExitCode|n1|0:00|0|0:53|\n")
    assert info.exit_code == "0:53"


def test_accounting_is_read_and_what_waits_of_an_array_told_apart() -> None:
    waiting = JobInfo("13809957_2", "PENDING", elapsed_s=0)
    assert list(parse_accounting(ACCOUNTING)) == [
        JobInfo("13808858", "PENDING", elapsed_s=0),
        JobInfo("13808856", "FAILED", nodes="n1", elapsed_s=0, exit_code="3:0"),
        JobInfo("13809957_0", "CANCELLED", nodes="n1", elapsed_s=2, exit_code="0:0"),
        JobInfo("13809957_1", "RUNNING", nodes="n1", elapsed_s=3),
        *(replace(waiting, job_id=f"13809957_{index}") for index in (2, 4, 6, 8)),
    ]


def test_partitions_have_what_their_nodes_have() -> None:
    assert parse_partitions(PARTITIONS, NODES) == {
        "main": Partition("main", True, True, 4, None, None, None, 64, 512000, 2),
        "debug": Partition("debug", False, False, 1, 1, 2.0, ("lab", "paid"), 2, 4000, 2),
    }


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100_3g.20gb:2(S:0),gpu:h100:1", 3),
        ("gpu:8(S:0-1),nvme:1", 8),
        ("nvme:3,shard:gpu:9", 0),
    ],
)
def test_gpus_are_counted(resources: str, gpus: int) -> None:
    assert parse_partitions(PARTITIONS, f"debug|4|4000|{resources}\n")["debug"].gpus_per_node == gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:09", 9),
        ("4:05", 245),
        ("01:02:03", 3723),
        ("2-01:02:03", 176523),
        ("1-00:00:00", 86400),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_durations(text: str, expected: float | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("reason", "words", "in_vain"),
    [
        ("Resources", "waits for free nodes", False),
        ("(Resources)", "waits for free nodes", False),
        ("", "not looked at it yet", False),
        ("ReqNodeNotAvail, UnavailableNodes:n[3-4]", "down, drained or reserved (UnavailableNodes:n[3-4])", False),
        ("JobArrayTaskLimit", "array_parallelism", False),
        ("PartitionTimeLimit", "lower time_min", True),
        ("PartitionConfig", "ask for less", True),
        ("DependencyNeverSatisfied", "did not end well", True),
        ("launch failed requeued held", "scontrol release", True),
        ("launch_failed_requeued_held", "scontrol release", True),
        (
            "Job's account not permitted to use this partition (paid allows paid not default)",
            "its account is not permitted to use this partition (paid allows paid not default)",
            True,
        ),
        ("AssocGrpCpuLimit", "a limit of its account is reached (AssocGrpCpuLimit)", False),
        ("QOSMaxJobsPerUserLimit", "quality of service is reached (QOSMaxJobsPerUserLimit)", False),
        ("MaxGRESPerAccount", "quality of service is reached (MaxGRESPerAccount)", False),
        ("SomethingNew", "SomethingNew", False),
    ],
)
def test_reasons_are_put_into_words(reason: str, words: str, in_vain: bool) -> None:
    assert words in in_words(reason)
    assert waits_in_vain(reason) is in_vain


@pytest.mark.parametrize(
    ("state", "exit_code", "words"),
    [
        ("FAILED", "3:0", "it ended with exit code 3"),
        ("FAILED", "0:53", "its node could not write the files of the job"),
        ("FAILED", "0:9", "signal 9 (SIGKILL)"),
        ("FAILED", "137:0", "a process was ended by signal 9 (SIGKILL)"),
        ("FAILED", "0:125", "signal 125"),
        ("TIMEOUT", "0:15", "signal_delay_s"),
        ("OUT_OF_MEMORY", "0:125", "memory_gb"),
        ("NODE_FAIL", "1:0", "its node failed"),
        ("REVOKED", "", "SLURM says REVOKED"),
    ],
)
def test_endings_are_put_into_words(state: str, exit_code: str, words: str) -> None:
    assert words in ending_in_words(state, exit_code)


def test_without_slurm_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match="sbatch is not on this machine; run refbert on a login node, or use --on local"
    ):
        scheduler.require_slurm()
    with pytest.raises(RefusedError, match="SLURM does not answer: squeue is not on this machine"):
        scheduler.jobs(["1"])
    assert scheduler.accounted(["1"]) == {}
    assert scheduler.jobs([]) == {}
