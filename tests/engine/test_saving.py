"""Copying in the loop, writing in the background."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from refbert_dist.config import EngineConfig, OptimConfig
from refbert_dist.engine import saving
from refbert_dist.engine.checkpoint import TrainState, complete_checkpoints, write_checkpoint
from refbert_dist.engine.distributed import device_of, process_group, training_engine
from refbert_dist.engine.saving import Saver
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, UserError

ALONE = World(0, 1, 0)
CONFIG = EngineConfig(zero_stage=1)


@pytest.fixture(autouse=True)
def world() -> Iterator[World]:
    with process_group(60) as world:
        yield world


def network(width: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


def engine_of(module: nn.Module) -> Any:
    return training_engine(module.to(device_of(ALONE)), OptimConfig(steps=9, learning_rate=0.1), CONFIG, 1)


def advance(engine: Any) -> None:
    engine.backward(engine(torch.ones(4, 3, device=device_of(ALONE))).square().mean())
    engine.step()


def steps(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder)]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A disk that takes its time; gives what it has done."""
    done: list[str] = []

    def write(folder: Path, state: TrainState, *rest: Any) -> None:
        done.append(f"begin {state.step}")
        time.sleep(0.3)
        write_checkpoint(folder, state, *rest)
        done.append(f"end {state.step}")

    monkeypatch.setattr(saving, "write_checkpoint", write)
    yield done


def test_training_goes_on_while_the_copy_is_written_and_the_next_one_waits(tmp_path: Path, slow: list[str]) -> None:
    engine = engine_of(network())
    with Saver(tmp_path, CONFIG, ALONE) as saver:
        assert saver.restore(engine) == TrainState()
        advance(engine)
        copied = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
        saver.save(engine, TrainState(1), keep=2)
        assert "end 1" not in slow
        advance(engine)
        saver.save(engine, TrainState(2), keep=2)
        assert slow[:2] == ["begin 1", "end 1"] and "end 2" not in slow
    assert slow == ["begin 1", "end 1", "begin 2", "end 2"], "the end waits"
    written = [load_file(tmp_path / f"step-{step}" / "model.safetensors") for step in (1, 2)]
    for name, tensor in engine.module.state_dict().items():
        assert torch.equal(written[0][name], copied[name].cpu()) and torch.equal(written[1][name], tensor.cpu())
        assert not torch.equal(tensor, copied[name])


def test_another_failure_does_not_lose_what_was_copied(tmp_path: Path, slow: list[str]) -> None:
    engine = engine_of(network())
    with pytest.raises(RefusedError, match="something else"), Saver(tmp_path, CONFIG, ALONE) as saver:
        saver.restore(engine)
        advance(engine)
        saver.save(engine, TrainState(1), keep=2)
        raise RefusedError("something else")
    assert steps(tmp_path) == ["step-1"]


def until(call: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        call()
        time.sleep(0.01)


@pytest.mark.faults
@pytest.mark.parametrize("where", ["check", "save", "end"])
def test_a_full_disk_is_one_sentence_in_the_loop(small_disk: Path, where: str) -> None:
    folder = small_disk / "job"
    engine = engine_of(network(width=20_000))  # three times 400 kB
    saver = Saver(folder, CONFIG, ALONE)
    with pytest.raises(UserError, match=rf"cannot write in {folder}: no space left on the device"), saver:
        saver.restore(engine)
        advance(engine)
        saver.save(engine, TrainState(1), keep=2)
        if where == "check":
            until(saver.check)
        elif where == "save":
            saver.save(engine, TrainState(2), keep=2)
    assert list(folder.iterdir()) == []


def test_what_it_continues_from_must_fit(tmp_path: Path) -> None:
    engine = engine_of(network())
    with Saver(tmp_path, CONFIG, ALONE) as saver:
        saver.restore(engine)
        advance(engine)
        saver.save(engine, TrainState(1), keep=2)
    with pytest.raises(UserError, match=r"'0\.bias' is of shape \[5\] there and of shape \[6\] here"):
        Saver(tmp_path, CONFIG, ALONE).load_weights(network(width=6))
    other = network()
    other[1].requires_grad_(False)  # type: ignore[operator, index]
    with pytest.raises(UserError, match=r"'1\.bias\.exp_avg' is of shape \[2\] there and missing here"):
        Saver(tmp_path, CONFIG, ALONE).load_weights(other)


def test_it_starts_anew_where_there_is_nothing(tmp_path: Path) -> None:
    module = network()
    saver = Saver(tmp_path, CONFIG, ALONE)
    saver.load_weights(module)
    assert saver.restore(engine_of(module)) == TrainState()
    assert all(torch.equal(tensor.cpu(), network().state_dict()[name]) for name, tensor in module.state_dict().items())


def test_no_thread_is_left(tmp_path: Path) -> None:
    engine = engine_of(network())
    before = threading.active_count()
    with Saver(tmp_path, CONFIG, ALONE) as saver:
        saver.restore(engine)
        advance(engine)
        saver.save(engine, TrainState(1), keep=2)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
