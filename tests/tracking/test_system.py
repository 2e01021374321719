"""What a stage takes of its machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_stores import Stored, sync, write

from refbert_dist.tracking import system
from refbert_dist.tracking.system import sampled


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def records(run_dir: Path) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in (run_dir / "system.jsonl").read_text().splitlines()]


def test_a_short_stage_leaves_one_record(tmp_path: Path) -> None:
    used = time.process_time()
    with sampled(tmp_path / "run", "prepare"):
        while time.process_time() - used < 0.5:
            pass
    (record,) = records(tmp_path / "run")
    assert abs(float(record.pop("time")) - time.time()) < 600
    assert record.pop("stage") == "prepare"
    assert record.keys() == {"cpu_percent", "memory_gb", "machine_memory_percent"}
    assert float(record["cpu_percent"]) >= 0, "processes that end meanwhile take their time with them"
    assert float(record["memory_gb"]) > 0.01
    assert 0 < float(record["machine_memory_percent"]) <= 100


def test_a_long_one_leaves_some_with_the_processes_that_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "INTERVAL_S", 0.05)
    code = "held = b'x' * 300_000_000; print(flush=True); input()"
    with sampled(tmp_path, "distill-general"):
        wait_for(tmp_path, 2)
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        wait_for(tmp_path, 2)
        child.communicate(b"\n")
    found = records(tmp_path)
    memory = [float(record["memory_gb"]) for record in found]
    assert max(memory) - memory[0] > 0.29
    assert {record["stage"] for record in found} == {"distill-general"}
    assert len(found) >= 5


def wait_for(run_dir: Path, more: int) -> None:
    """Until so many further records have come."""
    path = run_dir / "system.jsonl"
    wanted = (len(records(run_dir)) if path.exists() else 0) + more
    deadline = time.monotonic() + 60
    while not path.exists() or len(records(run_dir)) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stage_goes_on_when_no_record_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "system.jsonl").mkdir()
    with sampled(tmp_path, "prepare"):
        pass
    assert "system.jsonl gets no more records" in caplog.text


@pytest.mark.parametrize(
    ("visible", "figures"),
    [
        (None, {"gpu_0_percent": 87.0, "gpu_0_memory_gb": 1.049, "gpu_1_percent": 3.0, "gpu_1_memory_gb": 2.097}),
        ("1", {"gpu_1_percent": 3.0, "gpu_1_memory_gb": 2.097}),
        ("MIG-unknown", {}),
        ("", {}),
    ],
)
def test_the_gpus_that_the_process_may_use_are_asked_of_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, figures: dict[str, float]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in *unknown*) echo "No devices were found"; exit 6;; *--id=1*) ;; *) echo "0, 87, 1000";; esac\n'
        'echo "1, 3, 2000"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with sampled(tmp_path, "prepare"):
        pass
    (record,) = records(tmp_path)
    assert {name: value for name, value in record.items() if name.startswith("gpu_")} == figures


@pytest.mark.usefixtures("store_made")
def test_mlflow_shows_it_over_the_seconds_of_the_run(run_dir: Path) -> None:
    lines = [
        {"time": 1_700_000_000.5 + seconds, "stage": stage, "cpu_percent": 50.0 + seconds, "memory_gb": 1.5}
        for seconds, stage in ((0, "prepare"), (15, "prepare"), (3600, "retrieve"))
    ]
    write(run_dir, "refbert", [1])
    copy = sync(run_dir)
    for line in lines:
        with (run_dir / "system.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        copy.sync_once()
    (run_dir / "mlflow.json").unlink()
    assert sync(run_dir).sync_once() == 4
    store = Stored(run_dir)
    assert store.points("run", "system/cpu_percent") == [
        (0, 50.0, 1_700_000_000_500),
        (15, 65.0, 1_700_000_015_500),
        (3600, 3650.0, 1_700_003_600_500),
    ]
    assert set(store.runs["run"].data.metrics) == {"system/cpu_percent", "system/memory_gb"}
    assert set(store.runs["run/refbert"].data.metrics) == {"loss"}
