"""``refbert logs``: what the processes of a run print, and of what has failed the end and the reason."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from pathlib import Path

from launchers.cluster.records import stage_folder
from launchers.watch.evidence import crashed_before, slurm_files, traces
from launchers.watch.run_status import ENDED_BADLY, StageStatus, experiment_of, status
from refbert_dist.engine.reports import log_path
from refbert_dist.errors import RefusedError, UserError, did_you_mean
from refbert_dist.pipeline import STAGES

LOOK_INTERVAL_S = 0.3
"""Between two looks at the files that are followed."""
ASK_INTERVAL_S = 3.0
"""Between two questions whether the run still goes on, which may go to SLURM."""


def show_logs(run_dir: Path, stage: str | None, follow: bool, failed: bool, lines: int) -> None:
    """Print the end of the log of a stage's first process, on stdout.

    Args:
        run_dir: the run directory.
        stage: of this stage; None: of the one that wrote last.
        follow: go on printing until the stage (None: the run) has ended, whatever is restarted meanwhile, or Ctrl-C.
        failed: instead, for each stage that has failed, why, and the end of the log of the process that failed first.
        lines: from the end of each file.

    Raises:
        UserError: it is no run directory, or has no such stage.
        RefusedError: there is no log yet.
    """
    exp = experiment_of(run_dir)
    names = [known.name for known in STAGES if known.wanted(exp)]
    if stage is not None and stage not in names:
        raise UserError(f"stage is '{stage}', which this run does not have{did_you_mean(stage, names)}")
    wanted = names if stage is None else [stage]
    if failed:
        _show_failed(run_dir, wanted, lines)
    elif follow:
        _follow(run_dir, wanted, lines)
    elif log := _newest(run_dir, wanted):
        _print_end(log, lines)
    else:
        raise RefusedError(f"{stage or 'this run'} has printed nothing yet; refbert status {run_dir} tells why")


def _newest(run_dir: Path, stages: list[str]) -> Path | None:
    """The log, among those of the stages' first processes, that was written to last."""
    found = [log for stage in stages if (log := log_path(run_dir, stage, 0)).exists()]
    return max(found, key=lambda log: log.stat().st_mtime, default=None)


def _print_end(path: Path, lines: int) -> int:
    """Print the last lines of a file under its name; returns where it ends."""
    with path.open("rb") as stream:
        last = deque(stream, maxlen=lines)
        end = stream.tell()
    _print(f"==> {path} <==\n" + b"".join(last).decode(errors="replace"))
    return end


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


# -- following ---------------------------------------------------------------------------------------------------------


def _follow(run_dir: Path, stages: list[str], lines: int) -> None:
    """Print what comes until nothing more will, then what became of the stages."""
    with contextlib.suppress(KeyboardInterrupt):
        for stage in _print_until_end(run_dir, stages, lines):
            if stage.message:
                sys.stderr.write(f"{stage.name} {stage.state}: {stage.message}\n")


def _print_until_end(run_dir: Path, stages: list[str], lines: int) -> list[StageStatus]:
    logs = [log_path(run_dir, stage, 0) for stage in stages]
    shown = {log: log.stat().st_size for log in logs if log.exists()}
    current = _newest(run_dir, stages)
    if current:
        shown[current] = _print_end(current, lines)
    asked_at = -ASK_INTERVAL_S
    while True:
        found: list[StageStatus] | None = None
        if time.monotonic() - asked_at >= ASK_INTERVAL_S:
            asked_at = time.monotonic()
            found = _if_ended(run_dir, stages)
        # Looked at after the question, so that nothing is missed which was written before the end.
        for log in logs:
            if not log.exists() or log.stat().st_size == shown.get(log, 0):
                continue
            if log != current:
                _print(f"==> {log} <==")
                current = log
            shown[log] = _print_from(log, shown.get(log, 0), whole_lines=found is None)
        if found is not None:
            return found
        time.sleep(LOOK_INTERVAL_S)


def _if_ended(run_dir: Path, stages: list[str]) -> list[StageStatus] | None:
    """The stages, if none of them will print any more without anybody doing anything."""
    run = status(run_dir)
    found = [stage for stage in run.stages if stage.name in stages]
    ended = all(stage.state in ("done", "not needed", *ENDED_BADLY) and not stage.finding.goes_on for stage in found)
    return found if ended or run.state not in ("running", "pending") else None


def _print_from(log: Path, start: int, whole_lines: bool) -> int:
    """Print what was added to a log; returns how far it is printed."""
    with log.open("rb") as stream:
        stream.seek(start)
        added = stream.read()
    if whole_lines:
        added = added[: added.rfind(b"\n") + 1]
    if added:
        _print(added.decode(errors="replace"))
    return start + len(added)


# -- failures ----------------------------------------------------------------------------------------------------------


def _show_failed(run_dir: Path, stages: list[str], lines: int) -> None:
    failed = [stage for stage in status(run_dir).stages if stage.name in stages and stage.state in ("failed", "lost")]
    if not failed:
        _print(f"nothing has failed in {run_dir}")
    for stage in failed:
        _print(f"{stage.name} {stage.state}: {stage.message}")
        for log in _telling(run_dir, stage):
            _print_end(log, lines)
        if stage.finding.job:
            for path in slurm_files(stage_folder(run_dir, stage.name), stage.finding.job.job_id):
                _print_end(path, lines)


def _telling(run_dir: Path, stage: StageStatus) -> list[Path]:
    """The log of the process that failed first; of a job that gave up after crashes also one that shows a crash."""
    first = stage.finding.trace
    if first is None:
        return []
    crashed = crashed_before(traces(run_dir, stage.name)) if first.report else None
    return list(dict.fromkeys([first.log, *([crashed.log] if crashed else [])]))
