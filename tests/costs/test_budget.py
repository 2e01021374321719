"""Operations of training, counted by the formulas of a plan."""

import pytest
from tiny import tiny_experiment

from refbert_dist.config import Experiment
from refbert_dist.costs.budget import training_gflop
from refbert_dist.costs.extents import extents
from refbert_dist.costs.work import Shape, forward


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return tiny_experiment(tmp_path_factory.mktemp("budget"))


def test_a_teachers_are_three_forward_passes_of_every_padded_micro_batch(exp: Experiment) -> None:
    shape = Shape(layers=4, hidden=32, heads=4, intermediate=64, embeddings=30522 + 96 + 2)
    padded = extents(exp)["train"].lengths.padded(16, 4)
    step = sum(3 * forward(shape, 4 * longest, longest).flops for longest in padded)
    assert training_gflop(exp, None) == pytest.approx(4 * step / 1e9)


def test_a_students_grow_with_its_steps_and_with_what_it_reads(exp: Experiment) -> None:
    assert exp.corpus
    tinybert, refbert = (training_gflop(exp, system) for system in ("tinybert", "refbert"))
    assert 0 < tinybert < refbert
    steps = {name: getattr(exp.distill, name).model_copy(update={"steps": 40}) for name in ("general", "prediction")}
    longer = exp.model_copy(update={"distill": exp.distill.model_copy(update=steps)})
    assert training_gflop(longer, "tinybert") > 4 * tinybert


def test_without_a_corpus_there_is_no_general_stage(exp: Experiment) -> None:
    assert training_gflop(exp.model_copy(update={"corpus": None}), "tinybert") < training_gflop(exp, "tinybert")
