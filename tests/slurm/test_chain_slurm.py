"""Whole runs through the command line: what is submitted, what comes of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from survivors import await_ends
from tiny import tiny_values

from refbert_dist import pipeline
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.local import in_processes
from refbert_dist.pipeline import Stage, in_this_process

STAGES = (
    *("prepare", "retrieve", "cache-general", "distill-general", "finetune"),
    *("cache-task", "distill-task", "evaluate", "export"),
)
MEASURED = ("latency_ms", "latency_ratio", "seconds")


@pytest.fixture
def experiment(shared_dir: Path) -> Path:
    values = {**tiny_values(shared_dir), "systems": ["refbert"], "launch": {"processes": 2, "threads": 1}}
    path = shared_dir / "exp.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def profile(shared_dir: Path) -> Callable[..., Path]:
    """Write a profile of the sandbox with these fields."""

    def write(**fields: Any) -> Path:
        path = shared_dir / "profile.yaml"
        path.write_text(yaml.safe_dump({"cluster": "slurm", "partition": "main", "memory_gb": 2, **fields}))
        return path

    return write


def refbert(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "launchers.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def assert_refused(answer: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, and one sentence with these words."""
    code, out, err = answer
    assert (code, out) == (2, ""), answer
    assert err.startswith("refbert: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def submitted_jobs(run_dir: Path) -> list[str]:
    path = run_dir / "submitted" / "jobs.jsonl"
    return [json.loads(line)["stage"] for line in path.read_text().splitlines()] if path.exists() else []


def queue(sandbox: Any) -> list[str]:
    return sandbox.sh("squeue", "--noheader", "--format=%i %T").splitlines()


def results(run_dir: Path) -> list[dict[str, Any]]:
    rows = json.loads((run_dir / "results.json").read_text())
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def worlds_in_processes(stage: Stage, exp: Experiment) -> None:
    """The stages whose numbers depend on the processes in as many as on the cluster; the others here, at once."""
    (in_processes() if stage.workers == "world" else in_this_process)(stage, exp)


def test_a_whole_run_on_a_cluster_is_the_same_as_here(
    sandbox: Any, experiment: Path, profile: Callable[..., Path], shared_dir: Path
) -> None:
    one = {"nodes": 1}
    other = {
        **{"prepare": one, "retrieve": one, "cache-task": one},
        **{"cache-general": {"tasks_per_node": 2}, "distill-task": {"nodes": 1, "tasks_per_node": 2}},
    }
    there, run_dir = profile(nodes=2, stages=other), shared_dir / "run"
    code, out, err = refbert("run", experiment, "--on", there)
    assert code == 0, err
    assert submitted_jobs(run_dir) == list(STAGES)
    code, out, err = refbert("run", experiment, "--on", there)
    assert code == 0 and out.count("is under way already") == len(STAGES), err
    assert submitted_jobs(run_dir) == list(STAGES)
    assert_refused(refbert("run", experiment), "run.dir", "has SLURM jobs under way", "refbert cancel")

    local = (f"run.dir={shared_dir / 'local'}", f"cache.dir={shared_dir / 'local-cache'}")
    pipeline.run(load_experiment(experiment, local), launch=worlds_in_processes)
    code, out, err = refbert("run", experiment, "--on", there, "--wait")
    assert code == 0 and "RefBERT k=2" in out, err
    assert not queue(sandbox)
    code, out, err = refbert("run", experiment, "--on", there)
    assert code == 0 and "nothing to do" in out, err
    assert submitted_jobs(run_dir) == list(STAGES)

    for name in ("intermediate-refbert", "prediction-refbert"):
        weights = [shared_dir / run / "models" / name / "model.safetensors" for run in ("run", "local")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert results(run_dir) == results(shared_dir / "local")


def test_a_dry_run_shows_scripts_and_answers_and_leaves_nothing(
    sandbox: Any, experiment: Path, profile: Callable[..., Path], shared_dir: Path
) -> None:
    there = profile(nodes=2, tasks_per_node=2)
    before = sorted(shared_dir.iterdir())
    code, out, err = refbert("run", experiment, "--on", there, "--dry-run")
    assert code == 0, err
    for stage in STAGES:
        assert f"--- batch script of {stage}" in out
        assert f"{stage}: SLURM would take it" in out
    assert not queue(sandbox)
    assert sorted(shared_dir.iterdir()) == before


WRONG = {
    "too many nodes": ({"nodes": 9}, ("nodes is 9", "at most 4")),
    "too much time": ({"partition": "debug", "time_min": 9}, ("time_min is 9", "debug", "at most 2 min")),
    "no such partition": ({"partition": "mian"}, ("partition is 'mian'", "did you mean 'main'")),
    "no account": ({"partition": "paid"}, ("account is not set", "takes jobs of paid only")),
    "too large an array": (
        {"nodes": 1, "stages": {"prepare": {"nodes": 65}}},
        ("prepare", "Invalid job array specification", "nothing was submitted"),
    ),
    "nodes do not see it": ({"shared_folders": ["/nowhere"]}, ("run.dir is", "/nowhere")),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_run_is_refused_before_anything_is_submitted(
    sandbox: Any, experiment: Path, profile: Callable[..., Path], shared_dir: Path, case: str
) -> None:
    fields, words = WRONG[case]
    assert_refused(refbert("run", experiment, "--on", profile(**fields)), *words)
    assert not queue(sandbox)
    assert not submitted_jobs(shared_dir / "run")


def test_without_slurm_on_this_machine(experiment: Path, profile: Callable[..., Path], shared_dir: Path) -> None:
    assert_refused(refbert("run", experiment, "--on", profile(), PATH="/nowhere"), "sbatch is not on this machine")
    assert not (shared_dir / "run").exists()


@pytest.fixture
def two_jobs_at_most(sandbox: Any) -> Iterator[None]:
    """A limit of accounting that ``sbatch --test-only`` does not know."""
    limit = ("sacctmgr", "--immediate", "modify", "user", "root", "set")
    sandbox.sh(*limit, "MaxSubmitJobs=2")
    yield
    sandbox.sh(*limit, "MaxSubmitJobs=-1")


def test_when_slurm_refuses_one_job_of_a_chain_all_are_cancelled(
    sandbox: Any, experiment: Path, profile: Callable[..., Path], shared_dir: Path, two_jobs_at_most: None
) -> None:
    assert_refused(
        refbert("run", experiment, "--on", profile()),
        *("SLURM refuses the job of cache-general", "limit", "the 2 job(s) submitted before it are cancelled"),
    )
    assert not submitted_jobs(shared_dir / "run")
    assert not [line for line in queue(sandbox) if not line.endswith("COMPLETING")]


def test_a_run_directory_that_the_nodes_do_not_see(
    sandbox: Any, experiment: Path, profile: Callable[..., Path]
) -> None:
    run_dir = Path("/dev/shm") / f"run-{uuid.uuid4().hex}"
    try:
        code, _, err = refbert("run", experiment, f"run.dir={run_dir}", "--on", profile())
        assert code == 0, err
        await_ends(load_experiment(experiment, [f"run.dir={run_dir}"]))
        code, out, err = refbert("status", run_dir)
        assert "does not see the run directory" in out, out + err
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
