import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_experiment

from launchers.estimate import estimate
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.costs import probe
from refbert_dist.errors import UserError

Show = Callable[[Experiment, bool], str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)

    def run(exp: Experiment, dry_run: bool) -> str:
        capsys.readouterr()
        estimate(exp, dry_run)
        return capsys.readouterr().out

    return run


def column(out: str, codec: str) -> list[str]:
    return next(line.split() for line in out.splitlines() if line.split()[:1] == [codec])


def test_sizes_by_codec_times_and_advice(tmp_path: Path, show: Show) -> None:
    out = show(tiny_experiment(tmp_path), False)
    assert "probe: the teacher takes" in out and "on a core of this CPU" in out
    assert "the teacher cache, general" in out and "the teacher cache, task" in out
    assert column(out, "int8")[1] == "36"  # 32 values and their scale
    assert column(out, "int4")[1] == "-"  # a width of 32 is no multiple of 64
    assert "targets too against references only: pays from" in out or "never pays" in out
    assert "advice for one trial: " in out and "distill.targets=" in out
    assert not (tmp_path / "cache").exists()


def test_without_references_there_are_two_ways(tmp_path: Path, show: Show) -> None:
    out = show(tiny_experiment(tmp_path, "references.count=0"), True)
    assert "no probe of the teacher was made" in out
    assert "references only" not in out
    assert "targets too against online" in out


def test_a_large_corpus_is_also_planned_for_a_gpu(tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    # A disk on which references fit, and targets do not.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 10**12))
    values = {
        "teacher": {"model": "bert-base-uncased"},
        "cache": {"dir": str(tmp_path), "codec": "int8"},
        "corpus": {"path": "somebody/text", "expected_tokens": 3_000_000_000},
        "distill": {"general": {"epochs": 3, "batch_size": 256}},
    }
    out = show(parse_experiment(values), True)
    assert "core-hours: cache-general once" in out and "GPU-hours: cache-general once" in out
    assert "TB are more than the 2 TB that are free for cache.dir" in out
    assert "advice for one trial: references only (distill.targets=online references.states=cache)" in out
    with pytest.raises(UserError, match=r"corpus.path is 'somebody/text', whose size is not known .*expected_tokens"):
        show(parse_experiment({**values, "corpus": {"path": "somebody/text"}}), True)
