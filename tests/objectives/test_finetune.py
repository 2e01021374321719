from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.finetune import FinetuneObjective

if TYPE_CHECKING:
    from conftest import World
else:
    World = Any

SAMPLES = np.array([4, 17, 2, 30, 11])


@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_loss_is_plain_torchs(world: World, num_labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    labels = np.arange(len(world.tokens), dtype=np.float32) % 3
    monkeypatch.setattr(world.tokens, "labels", labels)
    teacher = Teacher.load(str(world.root / "teacher"), num_labels=num_labels)
    teacher.model.classifier.weight.data *= 20
    objective = FinetuneObjective(teacher, world.tokens, num_labels)

    plain = AutoModelForSequenceClassification.from_pretrained(world.root / "teacher", num_labels=num_labels).eval()
    plain.load_state_dict(teacher.model.state_dict())
    logits = torch.cat(
        [plain(torch.from_numpy(world.tokens.ids(sample).astype(np.int64))[None]).logits for sample in SAMPLES.tolist()]
    )
    gold = torch.from_numpy(labels[SAMPLES])
    if num_labels == 1:
        expected = torch.nn.functional.mse_loss(logits[:, 0], gold)
    else:
        expected = torch.nn.functional.cross_entropy(logits, gold.long())
    expected.backward()

    def share(samples: np.ndarray) -> torch.Tensor:
        terms = objective.module(**objective.batch(samples, torch.device("cpu")))
        return sum(objective.weights[name] * value for name, value in terms.items())  # type: ignore[return-value]

    (denominator,) = objective.denominators(SAMPLES).values()
    found = sum(share(cut) / denominator for cut in (SAMPLES[:2], SAMPLES[2:]))
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in plain.parameters())
    for one, other in zip(teacher.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=2e-5 * largest)
