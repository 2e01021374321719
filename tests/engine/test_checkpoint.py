import shutil
from pathlib import Path

import pytest
import torch

from refbert_dist.engine import checkpoint
from refbert_dist.engine.checkpoint import TrainState, complete_checkpoints, load_checkpoint, save_checkpoint


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((3, 2), value), "a.bias": torch.arange(3.0) * value}


def moments(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"{name}.{moment}": tensor / 7 for name, tensor in weights(value).items() for moment in ("m", "v")}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, TrainState(step, 10 * step, 0.1 * step), weights(step), moments(step), keep)


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    # A view of something larger, and not contiguous, as parameters under ZeRO may be.
    odd = torch.arange(12.0).reshape(3, 4).T[:, :2].requires_grad_()
    save_checkpoint(folder, TrainState(7, 56, 1.25), {**weights(), "odd": odd}, moments(), keep=1)
    found = load_checkpoint(folder)
    assert found is not None
    state, loaded, loaded_moments = found
    assert state == TrainState(step=7, samples=56, seconds=1.25)
    assert loaded.keys() == {*weights(), "odd"} and torch.equal(loaded["odd"], odd.detach())
    assert all(torch.equal(loaded_moments[name], tensor) for name, tensor in moments().items())
    assert sorted(path.name for path in (folder / "step-7").iterdir()) == [
        "COMPLETE",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "job") is None
    assert complete_checkpoints(tmp_path) == []


def test_the_newest_counts_by_number_and_only_so_many_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 101):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [10, 101]
    assert {path.name for path in tmp_path.iterdir()} == {"step-10", "step-101"}
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0].step == 101 and torch.equal(found[1]["a.weight"], torch.full((3, 2), 101.0))


def test_an_incomplete_newest_is_ignored_and_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    shutil.copytree(save(tmp_path, 6), tmp_path / "step-7")
    (tmp_path / "step-7" / "COMPLETE").unlink()
    (tmp_path / "step-7" / "model.safetensors").write_bytes(b"half")
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0].step == 6
    save(tmp_path, 7)
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0].step == 7 and torch.equal(found[1]["a.weight"], torch.full((3, 2), 7.0))


def test_an_incomplete_one_does_not_count_among_those_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (save(tmp_path, 3, keep=9) / "COMPLETE").unlink()
    save(tmp_path, 4)
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("failing", ["save_file", "write_json", "write_text"])
def test_a_fault_at_any_place_leaves_the_earlier_one_and_no_debris(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    real = getattr(checkpoint, failing)

    def half(*arguments: object) -> None:
        real(*arguments)
        raise OSError("pulled the plug")

    monkeypatch.setattr(checkpoint, failing, half)
    with pytest.raises(OSError, match="pulled the plug"):
        save(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0].step == 5


def test_the_name_appears_only_when_everything_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = checkpoint.write_text

    def watched(path: Path, text: str) -> None:
        seen.append(sorted(item.name for item in path.parent.iterdir()))
        assert not (tmp_path / "step-1").exists()
        real(path, text)

    monkeypatch.setattr(checkpoint, "write_text", watched)
    save(tmp_path, 1)
    assert seen == [["model.safetensors", "optimizer.safetensors", "state.json"]], "COMPLETE is the last"
