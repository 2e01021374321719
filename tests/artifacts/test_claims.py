"""Sharing out shards: nobody waits for the dead, nothing is lost, nothing is done twice without need."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, WorkList, claims, save_tensors, shard_name

NAMES = [shard_name(number) for number in range(12)]
FORK = multiprocessing.get_context("fork")


def write(artifact: Artifact, name: str, value: float = 0.0) -> bool:
    return artifact.commit(name, {"safetensors": save_tensors({"x": np.full(4, value, np.float32)})}, {})


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "key")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a claim to become old waits for ever."""
    for name in ("FIRST_PATIENCE_S", "LEAST_PATIENCE_S"):
        monkeypatch.setattr(claims, name, 1e9)


def in_another_process(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Started; it has done ``work`` and sleeps."""
    done = FORK.Event()

    def run() -> None:
        work()
        done.set()
        time.sleep(60)

    process = FORK.Process(target=run)
    process.start()
    assert done.wait(30)
    return process


def _work(path: Path, start: int, names: list[str], results: "multiprocessing.Queue[list[str]]") -> None:
    artifact = Artifact(path)
    done = []
    for name in WorkList(artifact, names, start):
        time.sleep(0.002)
        if write(artifact, name):
            done.append(name)
    results.put(done)


@pytest.mark.dist
def test_several_processes_share_the_work_and_lose_none(artifact: Artifact) -> None:
    names = [shard_name(number) for number in range(60)]
    results: multiprocessing.Queue[list[str]] = FORK.Queue()
    # Two begin at the same place: there every claim is contested.
    workers = [FORK.Process(target=_work, args=(artifact.path, start, names, results)) for start in (0, 0, 30)]
    for worker in workers:
        worker.start()
    shares = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(name for share in shares for name in share) == names, "each is committed by exactly one"
    assert all(shares), "everyone has done something"
    artifact.finish(names, {})
    assert list(artifact.verify(full=True)) == []
    assert not list(artifact.path.glob("*.claim"))


@pytest.mark.faults
@pytest.mark.timeout(60)
@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_holder_on_this_host_is_taken_over_at_once(artifact: Artifact, patient: None, reaped: bool) -> None:
    holder = in_another_process(lambda: WorkList(artifact, NAMES).next())
    os.kill(holder.pid or 0, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid or 0, os.WEXITED | os.WNOWAIT)
    if reaped:
        holder.join()
    done = []
    for name in WorkList(artifact, NAMES):
        assert str((artifact.path / f"{name}.claim").readlink()) == claims._this_process(), "a takeover is a claim"
        done.append(name)
        write(artifact, name)
    assert done == [*NAMES[1:], NAMES[0]], "what is free comes first"
    holder.join()


@pytest.mark.faults
@pytest.mark.timeout(60)
def test_a_process_that_got_the_id_of_a_dead_holder_is_not_taken_for_it(artifact: Artifact, patient: None) -> None:
    artifact.path.mkdir()
    host, parent = claims._host(), os.getppid()
    (artifact.path / f"{NAMES[0]}.claim").symlink_to(f"{host}+{parent}+{claims._start_of(parent)}")
    assert WorkList(artifact, NAMES[:1]).next(wait=False) is None
    (artifact.path / f"{NAMES[0]}.claim").unlink()
    (artifact.path / f"{NAMES[0]}.claim").symlink_to(f"{host}+{parent}+1")
    assert WorkList(artifact, NAMES[:1]).next() == NAMES[0]


@pytest.mark.timeout(60)
def test_a_straggler_is_overtaken_and_its_late_commit_changes_nothing(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEAST_PATIENCE_S", 0.2)
    straggler = in_another_process(lambda: WorkList(artifact, NAMES).next())
    try:
        assert {name for name in WorkList(artifact, NAMES) if write(artifact, name)} == set(NAMES)
        before = {path.name: path.read_bytes() for path in artifact.path.iterdir()}
        assert not write(artifact, NAMES[0], 9.0)
        assert {path.name: path.read_bytes() for path in artifact.path.iterdir()} == before
    finally:
        straggler.kill()
        straggler.join()


def test_a_claim_is_honoured_while_its_holder_has_time(artifact: Artifact, patient: None) -> None:
    artifact.path.mkdir()
    (artifact.path / f"{NAMES[0]}.claim").symlink_to("elsewhere+1+2+3")
    work = WorkList(artifact, NAMES[:2])
    assert work.next() == NAMES[1]
    write(artifact, NAMES[1])
    assert work.next(wait=False) is None and not work._abandoned(NAMES[0])
    write(artifact, NAMES[0])  # as the other host does in the end
    assert work.next() is None


@pytest.mark.faults
@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_claim_that_is_none_only_costs_time(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    artifact.path.mkdir()
    (artifact.path / f"{NAMES[0]}.claim").write_bytes(content)
    monkeypatch.setattr(claims, "LEAST_PATIENCE_S", 0.1)
    assert {name for name in WorkList(artifact, NAMES) if write(artifact, name)} == set(NAMES)


def test_what_this_process_claimed_in_an_earlier_attempt_is_free(artifact: Artifact, patient: None) -> None:
    assert WorkList(artifact, NAMES).next() == NAMES[0]
    assert {name for name in WorkList(artifact, NAMES) if write(artifact, name)} == set(NAMES)


def test_commits_in_the_background_are_not_waited_for(artifact: Artifact, patient: None) -> None:
    work = WorkList(artifact, NAMES[:3])
    taken = list(work)
    assert taken == NAMES[:3] == work.undone()
    for name in taken:
        write(artifact, name)
    assert work.next() is None and work.undone() == []


def test_a_shard_that_a_repair_takes_back_is_dealt_again(artifact: Artifact) -> None:
    work = WorkList(artifact, NAMES[:2])
    for name in work:
        write(artifact, name)
    artifact.discard([NAMES[0]])
    assert list(work) == [NAMES[0]]


def test_a_large_folder_is_not_listed_for_every_shard(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    listings = []
    entries = Artifact._entries
    monkeypatch.setattr(Artifact, "_entries", lambda self: listings.append(1) or entries(self))
    for name in WorkList(artifact, [shard_name(number) for number in range(200)]):
        write(artifact, name)
    assert len(listings) <= 3
