import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refbert_dist.engine import checkpoint
from refbert_dist.engine.checkpoint import (
    Stretch,
    TrainState,
    check_fits,
    complete_checkpoints,
    newest_checkpoint,
    read_state,
    write_checkpoint,
)
from refbert_dist.errors import UserError

STRETCHES = (Stretch(0, 4, 3, "bf16"), Stretch(2, 1, 0, "fp32"))


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((3, 2), value), "a.bias": torch.arange(3.0) * value}


def optimizer(value: float = 1.0) -> dict[str, torch.Tensor]:
    moments = {f"{name}.{moment}": tensor / 7 for name, tensor in weights(value).items() for moment in ("m", "v")}
    return {"step": torch.tensor(value), **moments}


def shapes(value: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in value.items()}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    write_checkpoint(folder, TrainState(step, 10 * step, 0.1 * step), STRETCHES, weights(step), optimizer(step), keep)
    return folder / f"step-{step}"


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


def newest(folder: Path) -> str | None:
    found = newest_checkpoint(folder)
    return found.name if found else None


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "job", 7)
    assert newest_checkpoint(tmp_path / "job") == path
    assert read_state(path) == (TrainState(step=7, samples=70, seconds=pytest.approx(0.7)), STRETCHES)
    for name, tensors in (("model", weights(7)), ("optimizer", optimizer(7))):
        found = load_file(path / f"{name}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert sorted(item.name for item in path.iterdir()) == [
        "COMPLETE",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_without_a_checkpoint_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_checkpoint(tmp_path / "job") is None
    assert complete_checkpoints(tmp_path) == []
    assert caplog.records == []


def test_the_newest_counts_by_number_and_only_so_many_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 101):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [10, 101]
    assert {path.name for path in tmp_path.iterdir()} == {"step-10", "step-101"}
    assert newest(tmp_path) == "step-101"


def test_an_incomplete_newest_is_ignored_and_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    shutil.copytree(save(tmp_path, 6), tmp_path / "step-7")
    (tmp_path / "step-7" / "COMPLETE").unlink()
    (tmp_path / "step-7" / "model.safetensors").write_bytes(b"half")
    assert newest(tmp_path) == "step-6"
    path = save(tmp_path, 7)
    assert newest(tmp_path) == "step-7"
    assert torch.equal(load_file(path / "model.safetensors")["a.weight"], torch.full((3, 2), 7.0))


def test_an_incomplete_one_does_not_count_among_those_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (save(tmp_path, 3, keep=9) / "COMPLETE").unlink()
    save(tmp_path, 4)
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, file: str, missing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 6) / file
    path.write_bytes(path.read_bytes()[:-5])
    if missing:
        path.unlink()
    assert newest(tmp_path) == "step-5"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{tmp_path / 'step-6'} is damaged and not used" in caplog.text


def test_where_none_is_whole_the_job_starts_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (save(tmp_path, 5) / "COMPLETE").unlink()
    assert newest_checkpoint(tmp_path) is None
    assert f"{tmp_path} has no whole checkpoint; the job starts from its beginning" in caplog.text


@pytest.mark.parametrize("version", [checkpoint.VERSION + 1, None])
def test_one_of_another_version_is_refused(tmp_path: Path, version: int | None) -> None:
    path = save(tmp_path, 5)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, "version": version, "novelty": 1}))
    with pytest.raises(UserError, match=rf"step-5 has version {version}, but this release reads version 1; .* remove"):
        read_state(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a.weight": torch.zeros(2, 3)}, r"'a\.weight' is of shape \[3, 2\] there and of shape \[2, 3\] here"),
        ({"b": torch.zeros(1)}, r"'b' is missing there and of shape \[1\] here"),
        ({"a.bias": None}, r"'a\.bias' is of shape \[3\] there and missing here"),
    ],
)
def test_one_of_another_experiment_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    path = save(tmp_path, 5)
    check_fits(path, weights(), shapes(optimizer()))
    here = {name: tensor for name, tensor in {**weights(), **change}.items() if tensor is not None}
    with pytest.raises(UserError, match=rf"step-5 is of another experiment: {words}; choose another run\.dir, or"):
        check_fits(path, here, shapes(optimizer()))
    with pytest.raises(UserError, match=r"'a\.bias\.v' is of shape \[3\] there and missing here"):
        check_fits(path, weights(), {name: shape for name, shape in shapes(optimizer()).items() if name != "a.bias.v"})


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
    assert newest(tmp_path) == "step-5"


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
