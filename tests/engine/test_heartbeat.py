"""Processes that hang, and those that wait for them."""

import sys
import textwrap
import time
from pathlib import Path

import pytest

from refbert_dist.engine.heartbeat import Heartbeat
from refbert_dist.engine.processes import run_processes
from refbert_dist.errors import RefusedError

HANGS = """
import threading, time
import torch
from refbert_dist.engine.distributed import process_group
from refbert_dist.engine.heartbeat import Heartbeat

def stuck_in_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

with process_group(600) as world, Heartbeat(4) as heartbeat:
    for step in range(20):
        heartbeat.beat()
        if world.rank == 1 and step == 3:
            stuck_in_a_lock()
        torch.distributed.all_reduce(torch.ones(1))
"""


@pytest.mark.dist
def test_a_process_that_hangs_ends_them_all_with_every_stack(tmp_path: Path) -> None:
    program = tmp_path / "hangs.py"
    program.write_text(textwrap.dedent(HANGS))
    with pytest.raises(RefusedError, match="stage work failed in process"):
        run_processes([sys.executable, str(program)], count=2, threads=1, run_dir=tmp_path, stage="work")
    waiting, hanging = ((tmp_path / "logs" / f"work-rank{rank}.log").read_text() for rank in (0, 1))
    assert "Timeout (" in hanging and "in stuck_in_a_lock" in hanging
    assert "all_reduce" in waiting


def test_a_process_that_goes_on_is_left_alone() -> None:
    with Heartbeat(0.4) as heartbeat:
        for _ in range(12):
            time.sleep(0.1)
            heartbeat.beat()
    time.sleep(0.6)
