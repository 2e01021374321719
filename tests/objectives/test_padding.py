"""Padding that counts, as in TinyBERT's code: its own lines on padded batches, against the objective."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from test_distill import CPU, SAMPLES, WEIGHTS, total
from transformers import AutoModel

from refbert_dist.config import parse_experiment
from refbert_dist.errors import UserError
from refbert_dist.models.layer_map import layer_map
from refbert_dist.objectives.distill import EncoderObjective

if TYPE_CHECKING:
    from conftest import World
else:
    World = Any

COUNTED = ("distill.targets=online", "distill.padding=counted")
LENGTH = 48
"""``corpus.max_length``."""


def scores_with_mask(states: np.ndarray, layer: Any, mask: np.ndarray) -> np.ndarray:
    """``[B, h, S, S]``, keys at padding lowered by 10,000: what the code's attention gives out."""
    attention = layer.attention.self
    query, key = (
        (states @ part.weight.detach().numpy().T + part.bias.detach().numpy())
        .reshape(*states.shape[:2], attention.num_attention_heads, -1)
        .transpose(0, 2, 1, 3)
        for part in (attention.query, attention.key)
    )
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    return np.asarray(scores + (1.0 - mask)[:, None, None, :] * -10000.0)


def by_code(world: World, objective: EncoderObjective) -> dict[str, float]:
    """``general_distill.py``: every sample padded to the greatest length, ``MSELoss`` over everything."""
    teacher = AutoModel.from_pretrained(world.root / "teacher").eval()
    student, (projection,) = objective.module.student.eval(), objective.module.projections
    ids, mask = np.zeros((len(SAMPLES), LENGTH), np.int64), np.zeros((len(SAMPLES), LENGTH), np.int64)
    for place, sample in enumerate(SAMPLES.tolist()):
        own = world.tokens.ids(sample)
        ids[place, : len(own)], mask[place, : len(own)] = own, 1
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    references = objective.references.of(SAMPLES) if objective.references else {}
    with torch.no_grad():
        theirs = [state.numpy() for state in teacher(**inputs, output_hidden_states=True).hidden_states]
        states = student(**inputs, **references, output_hidden_states=True).hidden_states
        wide = [projection(state).numpy() for state in states]
    terms = {"embedding": ((wide[0] - theirs[0]) ** 2).mean(), "hidden": 0.0, "attention": 0.0}
    for level in (1, 2):
        terms["hidden"] += ((wide[level] - theirs[2 * level]) ** 2).mean()
        one = scores_with_mask(states[level - 1].numpy(), student.encoder.layer[level - 1], mask)
        other = scores_with_mask(theirs[2 * level - 1], teacher.encoder.layer[2 * level - 1], mask)
        one, other = (np.where(side <= -1e2, 0.0, side) for side in (one, other))
        terms["attention"] += ((one - other) ** 2).mean()
    return terms


@pytest.mark.parametrize("system", ["refbert", "tinybert"])
def test_counted_padding_is_the_codes_mean(world: World, system: Any) -> None:
    objective = world.objective(system, WEIGHTS, *COUNTED)
    expected, found = by_code(world, objective), total(objective, [SAMPLES])
    ignored = total(world.objective(system, WEIGHTS), [SAMPLES])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
        assert abs(found[name] / ignored[name] - 1) > 1e-3, "padding must matter"


def test_it_does_not_depend_on_how_a_batch_is_cut(world: World) -> None:
    """Also where no sample of a micro-batch is as long as another's longest."""
    objective = world.objective("refbert", WEIGHTS, *COUNTED)
    whole = total(objective, [SAMPLES])
    for cuts in (np.split(SAMPLES, 5), [SAMPLES[:1], SAMPLES[1:]]):
        assert total(objective, cuts) == pytest.approx(whole, rel=1e-5)
    batch = objective.batch(SAMPLES[:1], CPU)
    assert batch["inputs"]["input_ids"].shape == (1, LENGTH)
    assert all(states.shape == (1, LENGTH, 32) for states in batch["targets"].values())


def test_it_needs_the_teacher_beside_it_and_scores(world: World) -> None:
    with pytest.raises(UserError, match=r"padding is 'counted' but distill\.targets is 'cache'.*targets=online"):
        world.experiment("distill.padding=counted")
    with pytest.raises(UserError, match=r"attention is 'relations', which have no padding; set distill\.attention=sco"):
        world.experiment(*COUNTED, "distill.attention=relations")
    with pytest.raises(UserError, match=r"student\.heads is 6 and the teacher has 4 heads; set student\.heads=4 or"):
        world.objective("tinybert", *COUNTED, "student.heads=6")


def test_the_map_is_tinyberts() -> None:
    """Attention of layers 3, 6, 9 and 12; hidden states after 0 (the embeddings, a term of its own), 3, 6, 9 and 12."""
    assert layer_map("uniform", 4, 12) == (3, 6, 9, 12)
    exp = parse_experiment({"teacher": {"model": "bert-base-uncased"}, "corpus": {"path": "text.txt"}})
    assert (exp.student.layers, exp.distill.layer_map) == (4, "uniform")
