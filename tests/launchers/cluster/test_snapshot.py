import subprocess
import sys
from pathlib import Path

from tiny import tiny_experiment

from launchers.cluster.snapshot import take_snapshot
from refbert_dist.config import load_experiment


def test_jobs_run_from_a_copy_of_code_and_settings(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path)
    found = take_snapshot(exp)
    assert load_experiment(found.experiment) == exp
    code = "import launchers.cluster.job, refbert_dist; print(refbert_dist.__file__, launchers.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(found.code)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(path).is_relative_to(found.code) for path in done.stdout.split())
    assert not list(found.code.rglob("*.tmp"))


def test_the_same_code_and_settings_are_kept_once(tmp_path: Path) -> None:
    first = take_snapshot(tiny_experiment(tmp_path))
    again = take_snapshot(tiny_experiment(tmp_path))
    other = take_snapshot(tiny_experiment(tmp_path, "launch.threads=3"))
    assert first == again
    assert other.code == first.code and other.experiment != first.experiment
    assert load_experiment(first.experiment) == tiny_experiment(tmp_path)
