"""What the doctor says of this machine, without a cluster, and how it reads what a node reports."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launchers.checkup.checks import Check
from launchers.checkup.cluster import preemption
from launchers.checkup.diagnosis import Circumstances, diagnose
from launchers.checkup.probe import FROM_HERE, NodeReport, Probe, hub_cache, look_around
from launchers.profile import Resources, SlurmProfile

ROOT = Path(__file__).parents[3]
SANDBOX = ROOT / "slurm" / "profiles" / "sandbox.yaml"
Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / FROM_HERE).write_text("left")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> NodeReport:
    """This machine, as a node would report it."""
    return look_around(folder, [str(folder), "/does/not/exist", hub_cache()])


def around(folder: Path, **changes: Any) -> Circumstances:
    now = time.time()
    return replace(Circumstances(folder, "left", now - 600, now, scontrol=True, resources=Resources()), **changes)


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_dry_run_names_the_checks_and_makes_none(refbert: Refbert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, out, err = refbert("doctor", "--on", SANDBOX, "--dry-run")
    assert (code, err) == (0, "")
    assert "controller" in out and "preemption" in out and "HF_HOME" in out
    assert "ok " not in out and "MISSING" not in out


def test_without_slurm_the_profile_of_a_cluster_lacks_its_commands(
    refbert: Refbert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code, out, err = refbert("doctor", "--on", SANDBOX)
    assert code == 1 and "1 thing(s) missing" in err
    (line,) = [line for line in out.splitlines() if line.startswith("MISSING")]
    assert "sbatch" in line and "scontrol" in line and "login node" in line


def test_a_folder_that_cannot_be_written_to_is_missing(
    refbert: Refbert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setattr("os.access", lambda *_: False)  # Root may write anywhere.
    code, out, _ = refbert("doctor")
    assert code == 1
    assert any(line.startswith("MISSING folder") and "not writable" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("kind", "mode", "verdict", "words"),
    [
        ("preempt/none", "REQUEUE", "ok", "do not make room"),
        ("preempt/partition_prio", "OFF", "ok", "do not make room"),
        ("preempt/partition_prio", "REQUEUE", "ok", "told to save 60 + 30 s before"),
        ("preempt/partition_prio", "CANCEL", "note", "refbert resume"),
        ("preempt/qos", "GANG,SUSPEND", "ok", "GANG,SUSPEND"),
    ],
)
def test_how_jobs_make_room_depends_on_cluster_and_partition(kind: str, mode: str, verdict: str, words: str) -> None:
    partition = {"PartitionName": "gpu", "PreemptMode": mode, "GraceTime": "60"}
    check = preemption(partition, {"PreemptType": kind, "KillWait": "30 sec"})
    assert check.verdict == verdict
    assert words in check.text


# -- on a node ---------------------------------------------------------------------------------------------------------


def test_the_probe_needs_nothing_but_python() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import launchers.checkup.probe as probe; print(probe.versions())"
    )
    bare = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True)
    assert bare.returncode == 0, bare.stderr
    assert "'torch': None" in bare.stdout


def test_a_node_like_this_machine_lacks_nothing(report: NodeReport, folder: Path) -> None:
    profile = SlurmProfile(cluster="slurm", shared_folders=(folder,))
    found = list(diagnose(report, profile, around(folder, sent_at=report.time_s, received_at=report.time_s)))
    assert [check for check in found if check.verdict == "MISSING"] == []
    assert only(found, "node: folder").verdict == only(found, "node: python").verdict == "ok"


def test_the_report_appears_in_the_folder(folder: Path) -> None:
    assert Probe(str(folder), ())(0) == 0
    assert sorted(path.name for path in folder.iterdir()) == [FROM_HERE, "report.json"]


@pytest.mark.parametrize(
    ("seen", "profile", "name", "verdict", "words"),
    [
        ({"read": ""}, {}, "node: folder", "MISSING", "does not see what is written here"),
        ({"failures": {"torch": "ImportError: libcuda"}}, {}, "node: python", "MISSING", "import torch: ImportError"),
        ({"versions": {"torch": "2.9", "submitit": None}}, {}, "node: python", "MISSING", "has no submitit"),
        ({"versions": {"torch": "2.9", "deepspeed": "0.19"}}, {}, "node: python", "note", "torch 2.9 (here"),
        ({"cores": 1}, {"cpus_per_task": 8}, "node: cores", "note", "cpus_per_task is 8"),
        ({"gpus": 0, "gpu_text": "torch sees no GPU"}, {"gpus_per_node": 4}, "node: GPUs", "MISSING", "torch for CUDA"),
        ({"gpus": 4, "gpu_text": "4 x A100"}, {}, "node: GPUs", "note", "set gpus_per_node"),
        ({"gpus": 4, "gpu_text": "4 x A100"}, {"gpus_per_node": 4}, "node: GPUs", "ok", "4 x A100"),
        (
            {"gpus": 4, "gpu_failure": "no kernel image"},
            {"gpus_per_node": 4},
            "node: GPUs",
            "MISSING",
            "no kernel image",
        ),
        ({"reaches_hub": False}, {"offline": False}, "node: hub", "MISSING", "set offline: true"),
        ({"reaches_hub": True}, {"offline": False}, "node: hub", "ok", "can be reached"),
        ({"interfaces": ("lo", "eth0")}, {"interface": "ib0"}, "node: network", "MISSING", "has lo, eth0"),
        ({"interfaces": ("lo", "ib0")}, {"interface": "ib0"}, "node: network", "ok", "ib0"),
        ({"address": "127.0.1.1"}, {}, "node: network", "note", "127.0.1.1"),
        ({"hub_cache": "/elsewhere"}, {}, "node: HF_HOME", "note", "looks in /elsewhere"),
        ({}, {"shared_folders": ("/does/not/exist",)}, "node: folders", "MISSING", "/does/not/exist"),
        ({"temporary_free_gb": 0.2}, {}, "node: disk", "note", "TMPDIR"),
        ({"time_s": 0.0}, {}, "node: clock", "note", "behind"),
        ({"time_s": 1e12}, {}, "node: clock", "note", "ahead of"),
    ],
)
def test_what_differs_on_a_node_is_told(
    report: NodeReport,
    folder: Path,
    seen: dict[str, Any],
    profile: dict[str, Any],
    name: str,
    verdict: str,
    words: str,
) -> None:
    asked = SlurmProfile(cluster="slurm", **profile)
    found = list(diagnose(replace(report, **seen), asked, around(folder, resources=asked)))
    check = only(found, name)
    assert check.verdict == verdict
    assert words in check.text


def test_a_node_without_scontrol_cannot_queue_jobs_again(report: NodeReport, folder: Path) -> None:
    found = list(diagnose(report, SlurmProfile(cluster="slurm"), around(folder, scontrol=False)))
    assert only(found, "node: scontrol").verdict == "MISSING"
