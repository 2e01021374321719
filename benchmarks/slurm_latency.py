"""What our own code adds to SLURM's latency: until a submitted job trains, and when it is queued again.

    python benchmarks/slurm_latency.py EXP.yaml PROFILE.yaml [FIELD=VALUE]...

Needs all that general distillation needs (refbert retrieve EXP.yaml, then refbert cache build EXP.yaml). In every round
a job that only looks at the clock, and general distillation, ask SLURM for the same in turn, and both are queued again
once they run. Medians are printed. Runs go to temporary folders beside run.dir.

start    from sbatch's answer to the first line of the script, and to the end of the first step
requeue  from scontrol requeue to the first line again; from the last step before it to the end of the first one after
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from launchers.cluster import scheduler
from launchers.cluster.chain import batch_of, link_of
from launchers.cluster.launch import launch
from launchers.cluster.records import attempts, submissions
from launchers.profile import SlurmProfile, load_profile
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.pipeline import stage_named

T = TypeVar("T")
STAGE = "distill-general"
ROUNDS = 3
STEPS = 3
"""After which a start is disturbed."""
ENDLESS = (
    *("distill.general.epochs=null", "distill.general.steps=1000000"),
    *("engine.checkpoint_steps=1000000", "tracking.log_steps=1"),
)
PATIENCE_S = 3600.0
POLL_INTERVAL_S = 0.05
CLOCK = """\
date +%s.%N >>{times}
[ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || {{ scontrol requeue $SLURM_JOB_ID; sleep 600; }}
"""


def until(condition: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {PATIENCE_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
    return found


def clock_job(exp: Experiment, profile: SlurmProfile, folder: Path) -> dict[str, float]:
    """Of a job that asks for the same nodes, and does nothing."""
    script, times = folder / "clock.sh", folder / "clock.txt"
    header = (
        batch_of(exp, profile, link_of(exp, profile, stage_named(STAGE)), folder).script().partition("\n# setup")[0]
    )
    asked = [line for line in header.splitlines() if "--output" not in line]
    script.write_text("\n".join([*asked, "#SBATCH --output=/dev/null", CLOCK.format(times=times)]))
    subprocess.run(["sbatch", "--parsable", script], check=True, capture_output=True)
    submitted = time.time()
    until(lambda: times.exists() and len(times.read_text().splitlines()) == 2)
    first, second = map(float, times.read_text().splitlines())
    return {"start": first - submitted, "requeue": second - first}


def training_job(exp: Experiment, profile: SlurmProfile) -> dict[str, float]:
    """Of general distillation; ends when it goes on after it was queued again."""
    began = time.time()
    launch(exp, [STAGE], profile, Console(file=io.StringIO()))
    submission = submissions(exp.run.dir)[STAGE]
    try:
        until(lambda: len(steps(exp)) > STEPS)
        subprocess.run(["scontrol", "requeue", submission.job_id], check=True)
        until(lambda: len(attempts(exp.run.dir, submission.job_id)) == 2)
        before = steps(exp)
        after = until(lambda: steps(exp)[len(before) :])
    finally:
        scheduler.cancel([submission.job_id])
        until(lambda: not scheduler.queued([submission.job_id]))
    first, second = attempts(exp.run.dir, submission.job_id)
    return {
        "check and submit": submission.submitted_at - began,
        "start": before[0][1] - submission.submitted_at,
        "  of which: our first line to first step": before[0][1] - first.started_at,
        "requeue": after[0][1] - before[-1][1],
        "  of which: our first line to first step again": after[0][1] - second.started_at,
        "steps done twice": before[-1][0] - after[0][0] + 1,
    }


def steps(exp: Experiment) -> list[tuple[int, float]]:
    """Number and end of every recorded step."""
    path = exp.run.dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(record["step"], record["time"]) for record in records]


def main() -> None:
    path, place, *overrides = sys.argv[1:]
    exp, profile = load_experiment(path, overrides), load_profile(place)
    assert isinstance(profile, SlurmProfile), f"{place} is not a profile of SLURM"
    found: dict[str, list[float]] = {}
    exp.run.dir.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=exp.run.dir.parent, prefix="latency-") as name:
            folder = Path(name)
            run = load_experiment(path, [*overrides, f"run.dir={folder / 'run'}", *ENDLESS])
            for kind, times in (("clock", clock_job(run, profile, folder)), ("training", training_job(run, profile))):
                for what, seconds in times.items():
                    found.setdefault(f"{kind}: {what}", []).append(seconds)
    for what, values in found.items():
        print(f"{what:56} {statistics.median(values):7.2f}   ({min(values):.2f} to {max(values):.2f})")
    for what in ("start", "requeue"):
        ours, theirs = (statistics.median(found[f"{kind}: {what}"]) for kind in ("training", "clock"))
        print(f"{what}: {ours - theirs:.2f} s beyond SLURM's own {theirs:.2f} s")


if __name__ == "__main__":
    main()
