"""TinyBERT's losses, against the published formulas in plain numpy, one unpadded sample at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from refbert_dist.cache.states import OnlineStates
from refbert_dist.config import DistillConfig
from refbert_dist.errors import UserError
from refbert_dist.objectives.distill import EncoderObjective, LayerPlan, PredictionObjective
from refbert_dist.stages.students import new_classifier, save_folder

if TYPE_CHECKING:
    from conftest import World
else:
    World = Any

CPU = torch.device("cpu")
WEIGHTS = "distill.weights={embedding: 0.5, attention: 2, hidden: 3}"
SAMPLES = np.array([4, 17, 2, 30, 11])


def total(objective: EncoderObjective | PredictionObjective, cuts: Sequence[np.ndarray]) -> dict[str, float]:
    """What the loop computes: sums of micro-batches over denominators of the whole batch; ``loss`` weighs them."""
    denominators = objective.denominators(np.concatenate(cuts))
    sums: dict[str, float] = dict.fromkeys(objective.weights, 0.0)
    with torch.no_grad():
        for cut in cuts:
            for name, value in objective.module(**objective.batch(cut, CPU)).items():
                sums[name] += float(value)
    means = {name: value / denominators[name] for name, value in sums.items()}
    return {"loss": sum(objective.weights[name] * value for name, value in means.items()), **means}


# -- the same by hand ------------------------------------------------------------------------------------------------


def heads(states: np.ndarray, attention: Any, name: str) -> np.ndarray:
    """``[L, H]`` -> ``[h, L, d]`` by the layer's own weights."""
    layer = getattr(attention, name)
    projected = states @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return projected.reshape(len(states), attention.num_attention_heads, -1).transpose(1, 0, 2)


def scores_by_hand(states: np.ndarray, attention: Any) -> np.ndarray:
    query, key = heads(states, attention, "query"), heads(states, attention, "key")
    return query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])


def relations_by_hand(states: np.ndarray, attention: Any, count: int) -> np.ndarray:
    """``[3, count, L, L]``: softmax of Q Q^T, K K^T and V V^T."""
    found = []
    for name in ("query", "key", "value"):
        joined = heads(states, attention, name).transpose(1, 0, 2).reshape(len(states), count, -1).transpose(1, 0, 2)
        logits = joined @ joined.transpose(0, 2, 1) / np.sqrt(joined.shape[-1])
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        found.append(powers / powers.sum(-1, keepdims=True))
    return np.stack(found)


def by_hand(
    world: World, objective: EncoderObjective, mapped: Sequence[int], relation_heads: int = 0
) -> dict[str, float]:
    """The terms as means over all real tokens (pairs of them for scores) of the batch; layers are added up."""
    teacher = AutoModel.from_pretrained(world.root / "teacher").eval()
    student = objective.module.student
    (projection,) = objective.module.projections
    sums = {"embedding": 0.0, "hidden": 0.0, "attention": 0.0}
    tokens = pairs = 0
    for sample in SAMPLES.tolist():
        ids = torch.from_numpy(world.tokens.ids(sample).astype(np.int64))[None]
        references = objective.references.of(np.array([sample])) if objective.references else {}
        with torch.no_grad():
            wanted = [state[0].numpy() for state in teacher(ids, output_hidden_states=True).hidden_states]
            own = [state[0] for state in student(ids, **references, output_hidden_states=True).hidden_states]
            wide = [projection(state).numpy() for state in own]
        narrow = [state.numpy() for state in own]
        sums["embedding"] += ((wide[0] - wanted[0]) ** 2).mean(-1).sum()
        for level, layer in enumerate(mapped, start=1):
            sums["hidden"] += ((wide[level] - wanted[layer]) ** 2).mean(-1).sum()
            mine = (narrow[level - 1], student.encoder.layer[level - 1].attention.self)
            theirs = (wanted[layer - 1], teacher.encoder.layer[layer - 1].attention.self)
            if relation_heads:
                student_side, teacher_side = (relations_by_hand(*side, relation_heads) for side in (mine, theirs))
                divergence = (teacher_side * (np.log(teacher_side) - np.log(student_side))).sum(-1)
                sums["attention"] += divergence.mean((0, 1)).sum()
            else:
                sums["attention"] += ((scores_by_hand(*mine) - scores_by_hand(*theirs)) ** 2).mean(0).sum()
        tokens += ids.shape[1]
        pairs += ids.shape[1] ** 2
    attention = tokens if relation_heads else pairs
    return {
        "embedding": sums["embedding"] / tokens,
        "hidden": sums["hidden"] / tokens,
        "attention": sums["attention"] / attention,
    }


@pytest.mark.parametrize("system", ["refbert", "tinybert"])
@pytest.mark.parametrize(
    ("overrides", "mapped"),
    [((), (2, 4)), (("distill.layer_map=[1,3]",), (1, 3)), (("student.layers=3", "distill.layer_map=last"), (2, 3, 4))],
)
def test_the_terms_are_the_published_means(
    world: World, system: Any, overrides: tuple[str, ...], mapped: tuple[int, ...]
) -> None:
    assert np.ptp(world.tokens.lengths[SAMPLES]) > 15, "there must be padding"
    objective = world.objective(system, WEIGHTS, *overrides)
    expected = by_hand(world, objective, mapped)
    found = total(objective, [SAMPLES])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["loss"] == pytest.approx(
        0.5 * expected["embedding"] + 2 * expected["attention"] + 3 * expected["hidden"], rel=1e-4
    )


@pytest.mark.parametrize(("shape", "relation_heads"), [(("24", "6"), 4), (("20", "5"), 4), (("18", "3"), 2)])
def test_relations_where_head_counts_differ(world: World, shape: tuple[str, str], relation_heads: int) -> None:
    objective = world.objective("refbert", f"student.hidden={shape[0]}", f"student.heads={shape[1]}")
    assert (objective.plan.attention, objective.plan.relation_heads) == ("relations", relation_heads)
    found = total(objective, [SAMPLES])
    assert found["attention"] == pytest.approx(by_hand(world, objective, (2, 4), relation_heads)["attention"], rel=1e-4)
    assert found["attention"] > 1e-3


def test_scores_need_equal_head_counts(world: World) -> None:
    exp = world.experiment("student.heads=6", "distill.attention=scores")
    with pytest.raises(UserError, match=r"student\.heads is 6 and the teacher has 4.*student\.heads=4"):
        LayerPlan.make(exp.distill, world.student(exp, "tinybert").config, world.teacher)
    equal = world.experiment("distill.attention=relations")
    plan = LayerPlan.make(equal.distill, world.student(equal, "tinybert").config, world.teacher)
    assert plan.attention == "relations"


@pytest.mark.parametrize("overrides", [(), ("student.heads=6",), ("distill.projection=per_layer",)])
def test_cutting_a_batch_changes_nothing(world: World, overrides: tuple[str, ...]) -> None:
    objective = world.objective("refbert", WEIGHTS, *overrides)
    whole = total(objective, [SAMPLES])
    for cuts in (np.split(SAMPLES, 5), [SAMPLES[:1], SAMPLES[1:]], [SAMPLES[[3, 0]], SAMPLES[[1, 4, 2]]]):
        assert total(objective, cuts) == pytest.approx(whole, rel=1e-5)


def test_references_leave_the_first_layers_attention_term_as_it_is(world: World) -> None:
    """It compares token with token; what the layer makes of its references shows one layer later."""
    one = ("student.layers=1", "distill.layer_map=[2]")
    student = world.student(world.experiment(*one), "refbert")
    with_references = world.objective("refbert", *one, student=student)
    without = world.objective("tinybert", *one, student=student)
    found, plain = total(with_references, [SAMPLES]), total(without, [SAMPLES])
    assert found["attention"] == pytest.approx(plain["attention"], rel=1e-6)
    assert found["embedding"] == pytest.approx(plain["embedding"], rel=1e-6)
    assert abs(found["hidden"] / plain["hidden"] - 1) > 1e-3

    two = world.student(world.experiment(), "refbert")
    deep = [total(world.objective(system, student=two), [SAMPLES])["attention"] for system in ("refbert", "tinybert")]
    assert abs(deep[0] / deep[1] - 1) > 1e-4


class Asked(OnlineStates):
    """Remembers which layers were asked for."""

    def __init__(self, states: OnlineStates) -> None:
        super().__init__(states.teacher, states.tokens, states.device)
        self.asked: list[tuple[int, ...]] = []

    def layers(self, samples: np.ndarray, layers: Sequence[int]) -> dict[int, list[np.ndarray]]:
        self.asked.append(tuple(layers))
        return super().layers(samples, layers)


@pytest.mark.parametrize(
    ("weights", "terms", "asked"),
    [
        ({"embedding": 1.0, "attention": 0.0, "hidden": 0.0}, {"embedding"}, []),
        ({"embedding": 0.0, "attention": 0.0, "hidden": 1.0}, {"hidden"}, [(2, 4)]),
        ({"embedding": 0.0, "attention": 1.0, "hidden": 0.0}, {"attention"}, [(1, 3)]),
        ({"embedding": 1.0, "attention": 1.0, "hidden": 1.0}, {"embedding", "attention", "hidden"}, [(1, 2, 3, 4)]),
    ],
)
def test_weights_of_zero_switch_terms_and_their_targets_off(
    world: World, weights: dict[str, float], terms: set[str], asked: list[tuple[int, ...]]
) -> None:
    exp = world.experiment()
    config = DistillConfig.model_validate({**exp.distill.model_dump(), "weights": weights})
    states = Asked(world.states)
    student = world.student(exp, "tinybert")
    objective = EncoderObjective(student, world.teacher, world.tokens, states, None, config)
    found = objective.module(**objective.batch(SAMPLES, CPU))
    assert set(found) == set(objective.weights) == terms
    assert states.asked == asked
    assert len(objective.module.projections) == (0 if terms == {"attention"} else 1)


def test_weights_that_leave_nothing_to_learn_are_refused(world: World) -> None:
    with pytest.raises(UserError, match=r"distill\.weights\.embedding, attention and hidden are all 0"):
        world.experiment("distill.weights={embedding: 0, attention: 0, hidden: 0}")


def test_projections_are_shared_or_one_for_each_level(world: World) -> None:
    shared, own = (world.objective("tinybert", f"distill.projection={kind}") for kind in ("shared", "per_layer"))
    assert (len(shared.module.projections), len(own.module.projections)) == (1, 3)
    batch = own.batch(SAMPLES, CPU)
    own.module(**batch)["hidden"].backward()
    gradients = [layer.weight.grad for layer in own.module.projections]
    assert gradients[0] is None and gradients[1] is not None and gradients[2] is not None
    assert not torch.equal(gradients[1], gradients[2])


def test_only_student_and_projections_are_trained(world: World) -> None:
    objective = world.objective("refbert")
    trained = {name.partition(".")[0] for name, _ in objective.module.named_parameters()}
    assert trained == {"student", "projections"}
    before = {name: tensor.clone() for name, tensor in world.teacher.state_dict().items()}
    objective.module.train()
    assert not world.teacher.training
    sum(objective.module(**objective.batch(SAMPLES, CPU)).values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in world.teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.teacher.state_dict().items())
    lacking = [name for name, parameter in objective.module.named_parameters() if parameter.grad is None]
    # Nothing compared depends on the last layer's use of its own output, or it would show in the hidden term.
    assert lacking == []


# -- predictions -----------------------------------------------------------------------------------------------------


def classifier(world: World, folder: Path, num_labels: int, *overrides: str) -> Any:
    exp = world.experiment(*overrides)
    save_folder(folder, world.student(exp, "refbert").save_pretrained, {"steps": 0})
    student = new_classifier(exp, "refbert", folder, num_labels)
    student.classifier.weight.data *= 30
    return student.eval()


class Logits(OnlineStates):
    """Logits that are known, in place of a fine-tuned teacher's."""

    def logits(self, samples: np.ndarray) -> np.ndarray:
        return np.stack([np.array([sample % 3, 1.0, -sample % 5], np.float32) for sample in samples])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_predictions_follow_the_teachers_logits(world: World, tmp_path: Path, temperature: float) -> None:
    exp = world.experiment(f"distill.temperature={temperature}", "distill.weights.prediction=2.5")
    student = classifier(world, tmp_path / "encoder", 3)
    states = Logits(world.teacher, world.tokens, CPU)
    references = world.references(exp)
    objective = PredictionObjective(student, world.tokens, states, references, exp.distill, 0)
    own = []
    for sample in SAMPLES.tolist():
        ids = torch.from_numpy(world.tokens.ids(sample).astype(np.int64))[None]
        with torch.no_grad():
            own.append(student(ids, **references.of(np.array([sample]))).logits[0])
    wanted = torch.from_numpy(states.logits(SAMPLES))
    expected = torch.nn.functional.cross_entropy(
        torch.stack(own) / temperature, (wanted / temperature).softmax(-1), reduction="mean"
    ).item()
    found = total(objective, [SAMPLES])
    assert found["prediction"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(2.5 * expected, rel=1e-5)
    assert total(objective, np.split(SAMPLES, 5)) == pytest.approx(found, rel=1e-5)


def test_regression_follows_the_gold_scores(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = world.experiment()
    student = classifier(world, tmp_path / "encoder", 1)
    labels = np.linspace(-1, 5, len(world.tokens)).astype(np.float32)
    monkeypatch.setattr(world.tokens, "labels", labels)
    states = Asked(world.states)
    objective = PredictionObjective(student, world.tokens, states, None, exp.distill, 0)
    own = []
    for sample in SAMPLES.tolist():
        ids = torch.from_numpy(world.tokens.ids(sample).astype(np.int64))[None]
        with torch.no_grad():
            own.append(student(ids).logits[0, 0].item())
    expected = ((np.array(own) - labels[SAMPLES]) ** 2).mean()
    assert total(objective, [SAMPLES])["prediction"] == pytest.approx(expected, rel=1e-5)
    assert total(objective, np.split(SAMPLES, 5))["prediction"] == pytest.approx(expected, rel=1e-5)
    assert states.asked == [], "the teacher is not needed"
