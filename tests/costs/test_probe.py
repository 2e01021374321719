from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist.costs import probe as module
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.probe import probe_teacher
from refbert_dist.costs.rates import CORE, CPU
from refbert_dist.costs.work import forward, teacher_shape
from refbert_dist.models import locate
from refbert_dist.models.locate import teacher_info


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_measured_rate_is_what_a_plan_then_foretells(tmp_path: Path, precision: str) -> None:
    exp = tiny_experiment(tmp_path, f"cache.precision={precision}")
    lengths = Lengths.of([32] * 100)
    found = probe_teacher(exp, lengths)
    assert not found.random_weights
    assert found.device.basis == "probed"
    assert found.rates.core is CORE
    samples = 512 // 32
    work = forward(teacher_shape(teacher_info(exp.teacher.model)), samples * 32, 32)
    assert found.device.forward[precision].seconds(work) == pytest.approx(samples * 32 / found.tokens_s, rel=1e-3)
    ratio = found.device.forward["fp32"].flops_s / CPU.forward["fp32"].flops_s
    assert found.device.training.flops_s == pytest.approx(CPU.training.flops_s * ratio)


def test_a_teacher_that_is_only_known_by_name_is_timed_with_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = tiny_experiment(tmp_path)
    monkeypatch.setitem(locate.WELL_KNOWN, "somebody/tiny", teacher_info(exp.teacher.model))
    exp = tiny_experiment(tmp_path, "teacher.model=somebody/tiny")
    found = probe_teacher(exp, Lengths.of([16, 32]))
    assert found.random_weights
    assert found.tokens_s > 0
