"""``refbert doctor`` on a real cluster: what it finds out from outside, and what its job sees on a node."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers.checkup import trial
from launchers.checkup.doctor import examine
from refbert_dist.errors import RefusedError, UserError

SANDBOX = Path(__file__).parents[2] / "slurm" / "profiles" / "sandbox.yaml"
Found = dict[str, list[tuple[str, str]]]
Doctor = Callable[..., Found]


@pytest.fixture
def doctor(
    sandbox: Any, shared_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    """Examine the sandbox's profile with changes; gives verdicts and texts by name. Nothing may be left behind."""
    monkeypatch.chdir(shared_dir)

    def examined(**changes: Any) -> Found:
        profile = write_profile(Path.cwd(), **changes)
        capsys.readouterr()
        complaint = None
        try:
            examine(str(profile), dry_run=False)
        except RefusedError as error:
            complaint = error
        profile.unlink()
        found: Found = {}
        for line in capsys.readouterr().out.splitlines():
            found.setdefault(line[8:22].strip(), []).append((line[:7].strip(), line[23:]))
        assert (complaint is not None) == any(verdict == "MISSING" for said in found.values() for verdict, _ in said)
        assert list(Path.cwd().iterdir()) == []
        assert sandbox.sh("squeue", "--noheader", "--name=refbert-doctor", "--states=PD,R") == ""
        return found

    return examined


def write_profile(folder: Path, **changes: Any) -> Path:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SANDBOX.read_text()), **changes}))
    return path


def verdicts(found: Found, name: str) -> set[str]:
    return {verdict for verdict, _ in found[name]}


def text(found: Found, name: str) -> str:
    return "\n".join(text for _, text in found[name])


# -- from outside and inside -------------------------------------------------------------------------------------------


def test_the_sandbox_lacks_nothing(doctor: Doctor) -> None:
    found = doctor()
    assert {verdict for said in found.values() for verdict, _ in said} == {"ok"}
    assert "SLURM" in text(found, "controller")
    assert "distill-task: 2 nodes x 2 processes x 1 core, 3 GB a node, 2.0 h" in text(found, "jobs")
    assert "retrieve, cache-general, cache-task: 2 jobs of 1 node x 2 processes" in text(found, "jobs")
    assert "15 + 5 s" in text(found, "preemption")
    assert "64 are allowed" in text(found, "arrays")
    for name in ("folder", "python", "scontrol", "cores", "hub", "HF_HOME", "disk"):
        assert verdicts(found, f"node: {name}") == {"ok"}


def test_the_job_tells_what_the_node_does_not_have(doctor: Doctor) -> None:
    found = doctor(gpus_per_node=1, offline=False, interface="ib7", shared_folders=[tempfile.gettempdir(), "/nowhere"])
    assert "CUDA_VISIBLE_DEVICES is 0" in text(found, "node: GPUs")
    assert "set offline: true" in text(found, "node: hub")
    assert "has lo, eth0" in text(found, "node: network")
    assert "/nowhere" in text(found, "node: folders")
    assert [verdict for said in found.values() for verdict, _ in said].count("MISSING") == 4


# -- from outside ------------------------------------------------------------------------------------------------------


def test_all_that_is_too_much_is_told_at_once_with_the_stages(doctor: Doctor) -> None:
    too_much = {"nodes": 9, "tasks_per_node": 3, "cpus_per_task": 2, "gpus_per_node": 3, "memory_gb": 64}
    found = doctor(**too_much, stages={"prepare": {"nodes": 70}})
    (said,) = [said for _, said in found["jobs"] if said.startswith("distill-general, finetune, distill-task: ")]
    assert "tasks_per_node x cpus_per_task is 3 x 2 = 6, but the nodes of partition main have at most 4 cores" in said
    assert "memory_gb is 64, but the nodes of partition main have at most 3.9" in said
    assert "gpus_per_node is 3, but the nodes of partition main have at most 2" in said
    assert "nodes is 9" in said
    assert "set stages.prepare.nodes: 64" in text(found, "arrays")
    assert verdicts(found, "jobs") == verdicts(found, "arrays") == {"MISSING"}
    assert verdicts(found, "trial job") == {"note"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition": "paid"}, "takes jobs of paid only"),
        ({"account": "nobodys"}, "Invalid account"),
        ({"constraint": "fast"}, "Invalid feature"),
    ],
)
def test_what_slurm_does_not_let_us_have_is_told(doctor: Doctor, changes: dict[str, Any], words: str) -> None:
    found = doctor(**changes)
    assert verdicts(found, "jobs") == {"MISSING"}
    assert words in text(found, "jobs")
    assert words in text(found, "trial job")


def test_partitions_tell_how_their_jobs_make_room(doctor: Doctor) -> None:
    stages = {"prepare": {"partition": "high"}, "export": {"partition": "rude"}}
    told = text(doctor(account="nobodys", stages=stages), "preemption")
    assert "jobs of partition high do not make room" in told
    assert "jobs of partition rude make room for others: told to save 0 + 5 s" in told


def test_a_partition_that_is_not_there_is_one_sentence(doctor: Doctor) -> None:
    with pytest.raises(UserError, match=r"partition is 'mian', .*did you mean 'main'"):
        doctor(partition="mian")


# -- the job -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unshared_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this machine alone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.chdir(folder)
        yield Path(folder)


def test_a_folder_that_nodes_do_not_see_is_told(doctor: Doctor, unshared_dir: Path) -> None:
    said = doctor()["trial job"][-1]
    assert said[0] == "MISSING"
    assert f"left nothing in {unshared_dir}" in said[1] and "does not see that folder" in said[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": "/opt/nothing/python"}, "/opt/nothing/python: No such file or directory"),
        ({"setup": ["export PYTHONPATH=", "cd /", "exec false"]}, "it ended with exit code 1"),
        ({"container": "no-such-command exec"}, "no-such-command"),
        ({"sbatch": {"hold": True}}, "it is held"),
    ],
)
def test_a_job_that_fails_is_told_with_its_last_words(doctor: Doctor, changes: dict[str, Any], words: str) -> None:
    verdict, said = doctor(**changes)["trial job"][-1]
    assert verdict == "MISSING"
    assert words in said


def test_a_job_that_does_not_start_is_cancelled(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "START_WAIT_S", 1)
    verdict, said = doctor(sbatch={"begin": "now+1hour"})["trial job"][-1]
    assert verdict == "note"
    assert "did not start within 1 s and is cancelled" in said and "was not checked" in said


def test_an_interrupt_cancels_the_job(sandbox: Any, shared_dir: Path) -> None:
    profile = write_profile(shared_dir, sbatch={"begin": "now+1hour"})
    command = [sys.executable, "-m", "launchers.cli", "doctor", "--on", str(profile)]
    process = subprocess.Popen(
        command,
        cwd=shared_dir,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # What runs the tests in the background may ignore interrupts, which children would do, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert any("is submitted" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    assert sandbox.sh("squeue", "--noheader", "--name=refbert-doctor", "--states=PD,R") == ""
    assert list(shared_dir.iterdir()) == [profile]
