"""One small real job, for ``refbert doctor``: does a job of the profile run, and what does it find on its node?"""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from launchers.checkup.checks import Check
from launchers.checkup.diagnosis import Circumstances, diagnose
from launchers.checkup.probe import FROM_HERE, REPORT, NodeReport, Probe, hub_cache
from launchers.cluster import scheduler
from launchers.cluster.admission import verdicts
from launchers.cluster.batch import Batch, SubmissionError
from launchers.cluster.chain import batch_of, link_of
from launchers.cluster.formats import JobInfo
from launchers.cluster.reasons import ending_in_words, in_words, waits_in_vain
from launchers.cluster.snapshot import take_snapshot
from launchers.profile import SlurmProfile
from refbert_dist.artifacts import write_json, write_text
from refbert_dist.config import Experiment
from refbert_dist.pipeline import stage_named

START_WAIT_S = 60.0
"""The job may wait so long in the queue."""
TIME_LIMIT_MIN = 5
"""Of the job, if the profile has no less: importing everything from a busy network disk may take minutes."""
REPORT_LAG_S = 15.0
"""A network file system may show the report so long after the job has ended."""
POLL_INTERVAL_S = 0.5
NOT_STARTED = ("PENDING", "CONFIGURING")
UNCHECKED = "what runs on nodes was not checked"


def try_job(exp: Experiment, profile: SlurmProfile) -> Iterator[Check]:
    """Send the job, wait for it, and tell what it found; it is cancelled if it does not start in time.

    Args:
        exp: its run directory gets the job's files; removing them is left to the caller.
        profile: whose default resources are asked for, of one process.
    """
    folder = exp.run.dir
    left, sent_at = uuid.uuid4().hex, time.time()
    write_text(folder / FROM_HERE, left)
    batch = _batch(exp, profile)
    verdict = verdicts({"": batch})[""]
    if not verdict.accepted:
        yield Check("note", "trial job", f"not sent, because SLURM would not run it: {verdict.text}; {UNCHECKED}")
        return
    folders = (*(str(shared.absolute()) for shared in profile.shared_folders), hub_cache())
    try:
        job_id = batch.submit(Probe(str(folder), folders))
    except SubmissionError as error:
        yield Check("MISSING", "trial job", f"SLURM refuses it: {error}; change the profile")
        return
    try:
        yield Check("ok", "trial job", f"{job_id} is submitted: one process, {batch.resources.time_min} min at most")
        info = _wait(job_id, folder)
        if not (folder / REPORT).exists():
            yield _without_report(job_id, info, folder, _last_words(batch.folder))
            return
    finally:
        scheduler.cancel([job_id])
    record = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    report = NodeReport(**{**record, "interfaces": tuple(record["interfaces"])})
    found_scontrol = (folder / "scontrol").exists() and bool((folder / "scontrol").read_text())
    around = Circumstances(folder, left, sent_at, time.time(), found_scontrol, batch.resources)
    yield from diagnose(report, profile, around)


def _batch(exp: Experiment, profile: SlurmProfile) -> Batch:
    """As a stage of one process would be submitted, but short."""
    folder = exp.run.dir
    # Looked for in the batch script, which runs outside any container, because that is where it is needed.
    look = f"command -v scontrol > {shlex.quote(str(folder / 'scontrol'))}"
    plain = profile.model_copy(update={"stages": {}, "setup": (*profile.setup, look), "signal_delay_s": 30})
    link = link_of(exp, plain, stage_named("export"))
    share = link.resources.memory_gb and link.resources.memory_gb / profile.tasks
    short = {"time_min": min(TIME_LIMIT_MIN, profile.time_min), "memory_gb": share}
    link = replace(link, resources=link.resources.model_copy(update=short))
    # To its batch script a failure with a report is final, and so this job is never queued again.
    explained = folder / "explained.json"
    write_json(explained, {"exit_code": 1})
    batch = batch_of(exp, plain, link, take_snapshot(exp).code)
    return replace(batch, name="refbert-doctor", reports=shlex.quote(str(explained)))


def _wait(job_id: str, folder: Path) -> JobInfo | None:
    """Until the report is there, the job has ended or will not start; returns what SLURM says of it."""
    start_deadline = time.monotonic() + START_WAIT_S
    while True:
        info = scheduler.jobs([job_id]).get(job_id)
        if (folder / REPORT).exists() or info is None:
            return info
        if info.is_over:
            return _await_report(folder, info)
        if info.state in NOT_STARTED and (waits_in_vain(info.reason) or time.monotonic() > start_deadline):
            return info
        time.sleep(POLL_INTERVAL_S)


def _await_report(folder: Path, info: JobInfo) -> JobInfo:
    deadline = time.monotonic() + REPORT_LAG_S
    while info.state == "COMPLETED" and not (folder / REPORT).exists() and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    return info


def _without_report(job_id: str, info: JobInfo | None, folder: Path, words: str) -> Check:
    """What it means that nothing came back; ``words``: the end of the job's log."""
    if info is None:
        return Check("MISSING", "trial job", f"SLURM knows nothing of {job_id} any more; ask those who run the cluster")
    if info.state in NOT_STARTED:
        why = in_words(info.reason)
        if waits_in_vain(info.reason):
            return Check("MISSING", "trial job", f"{job_id} {why}")
        text = f"{job_id} did not start within {START_WAIT_S:.0f} s and is cancelled ({info.state}: {why}); "
        return Check("note", "trial job", text + UNCHECKED)
    if info.state == "COMPLETED" or (info.exit_code == "0:53" and not words):
        text = f"{job_id} left nothing in {folder.parent}, so {info.nodes} does not see that folder; "
        return Check(
            "MISSING", "trial job", text + "work in one that all nodes share, and keep run.dir and cache.dir there"
        )
    ending = ending_in_words(info.state, info.exit_code)
    log = f"; its log ends: {words}; mend python, container, srun or setup" if words else ""
    return Check("MISSING", "trial job", f"{job_id} on {info.nodes}: {ending}{log}")


def _last_words(folder: Path) -> str:
    """The last line of the job's log that is more than a report of its end."""
    lines = [
        line.strip()
        for path in sorted(folder.glob("*_log.out"))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    telling = [line for line in lines if line and not line.startswith(("srun: ", "refbert: "))]
    return telling[-1] if telling else ""
