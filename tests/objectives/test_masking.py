"""The masked-language term."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from refbert_dist.objectives.masking import MaskedLanguage, mask_tokens, masked_count

if TYPE_CHECKING:
    from conftest import World
else:
    World = Any

CPU = torch.device("cpu")
MASK, VOCABULARY = 103, 30522
ON = "distill.weights={mlm: 2, embedding: 0, attention: 0}"
SAMPLES = np.array([4, 17, 2, 30, 11])


def batch(rows: int = 400, longest: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that are no mask token, and a mask, of samples of 3 to ``longest`` tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, longest + 1, (rows, 1), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths).long()
    return torch.randint(1000, VOCABULARY, mask.shape, generator=generator) * mask, mask


def test_how_many_tokens_are_masked_is_known_from_the_length_alone() -> None:
    ids, mask = batch()
    lengths = mask.sum(1)
    for seed in range(3):
        torch.manual_seed(seed)
        _, chosen = mask_tokens(ids, mask, MASK, VOCABULARY)
        assert torch.equal(chosen.sum(1), masked_count(lengths))
    assert np.array_equal(masked_count(lengths.numpy()), masked_count(lengths).numpy())
    assert masked_count(np.array([3, 8, 22, 128])).tolist() == [1, 1, 3, 19]


def test_what_is_masked_is_neither_special_nor_padding() -> None:
    ids, mask = batch()
    torch.manual_seed(0)
    seen, chosen = mask_tokens(ids, mask, MASK, VOCABULARY)
    assert torch.equal(seen[~chosen], ids[~chosen])
    last = mask.sum(1) - 1
    assert not chosen[:, 0].any() and not chosen[torch.arange(len(ids)), last].any()
    assert not chosen[mask == 0].any()
    inner = torch.zeros(60)
    for _ in range(200):
        inner += mask_tokens(ids[:1], mask[:1], MASK, VOCABULARY)[1][0]
    assert inner[1:-1].min() > 0, "every other place can be"


def test_of_ten_eight_are_masked_one_is_another_and_one_stays() -> None:
    ids, mask = batch(rows=3000)
    torch.manual_seed(0)
    seen, chosen = mask_tokens(ids, mask, MASK, VOCABULARY)
    masked, kept = seen[chosen] == MASK, seen[chosen] == ids[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.01)
    others = seen[chosen][~masked & ~kept]
    assert len(others) / len(masked) == pytest.approx(0.1, abs=0.01)
    assert others.float().mean() == pytest.approx(VOCABULARY / 2, rel=0.05)


def test_the_draw_is_the_generators() -> None:
    ids, mask = batch()

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return mask_tokens(ids, mask, MASK, VOCABULARY)[0]

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_the_head_is_berts(world: World) -> None:
    """The same weights in transformers' own model give the same loss for the same masked input."""
    exp = world.experiment()
    student = world.student(exp, "tinybert").eval()
    torch.manual_seed(2)
    head = MaskedLanguage(student.config, MASK)
    head.bias.data.normal_()
    judge = BertForMaskedLM(student.config).eval()
    judge.bert.load_state_dict(student.state_dict())
    judge.cls.predictions.load_state_dict(head.state_dict(), strict=False)
    assert torch.equal(judge.cls.predictions.decoder.weight, student.embeddings.word_embeddings.weight)
    ids, mask = batch(rows=6, longest=40)
    torch.manual_seed(5)
    found = head(student, {"input_ids": ids, "attention_mask": mask}, {})
    torch.manual_seed(5)
    seen, chosen = mask_tokens(ids, mask, MASK, VOCABULARY)
    expected = judge(input_ids=seen, attention_mask=mask, labels=ids.masked_fill(~chosen, -100)).loss
    assert float(found.detach()) / int(chosen.sum()) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("system", ["refbert", "tinybert"])
def test_it_leaves_the_other_terms_the_input_as_it_is(world: World, system: Any) -> None:
    student = world.student(world.experiment(), system)
    plain = world.objective(system, "distill.weights={embedding: 0, attention: 0}", student=student)
    masking = world.objective(system, ON, student=student, mask_token_id=MASK)
    assert masking.weights == {"hidden": 1.0, "mlm": 2.0}
    masking.module.projections.load_state_dict(plain.module.projections.state_dict())
    found = masking.module(**masking.batch(SAMPLES, CPU))
    torch.testing.assert_close(found["hidden"], plain.module(**plain.batch(SAMPLES, CPU))["hidden"])
    per_token = float(found["mlm"].detach()) / masking.denominators(SAMPLES)["mlm"]
    assert per_token > 1.0
    found["mlm"].backward()
    gradients = {name: weight.grad for name, weight in masking.module.named_parameters()}
    reading = [name for name in gradients if "reference_" in name]
    assert len(reading) == (6 if system == "refbert" else 0), "it reads references, too"
    for name in (*reading, "mlm_head.bias", "student.embeddings.word_embeddings.weight"):
        assert gradients[name] is not None and gradients[name].abs().sum() > 0, name  # type: ignore[union-attr]
    assert sum("word_embeddings" in name for name in masking.module.state_dict()) == 1, "tied, and saved once"


def test_it_belongs_to_the_general_stage(world: World) -> None:
    objective = world.objective("tinybert", ON)  # no mask token: the task's first phase
    assert objective.weights == {"hidden": 1.0}
    assert set(objective.module(**objective.batch(SAMPLES, CPU))) == {"hidden"}
    assert objective.module.mlm_head is None


def test_weights_follow_their_schedule(world: World) -> None:
    line = "distill.weights={mlm: {start: 4, end: 0, over: 0.5}, attention: 0, hidden: {start: 0, end: 1}}"
    objective = world.objective("tinybert", line, mask_token_id=MASK)
    assert objective.weights == objective.weights_at(0.0) == {"embedding": 1.0, "hidden": 0.0, "mlm": 4.0}
    assert objective.weights_at(0.25) == {"embedding": 1.0, "hidden": 0.25, "mlm": 2.0}
    assert objective.weights_at(1.0) == {"embedding": 1.0, "hidden": 1.0, "mlm": 0.0}
    assert set(objective.module(**objective.batch(SAMPLES, CPU))) == set(objective.weights)
