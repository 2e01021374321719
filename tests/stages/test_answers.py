import pytest
import torch

from refbert_dist.errors import UserError
from refbert_dist.stages.answers import answers


def test_all_rows_are_answered_in_order() -> None:
    found = list(answers(lambda samples: torch.from_numpy(samples)[:, None] * 2, 10, 4))
    assert [batch[:, 0].tolist() for batch in found] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_a_batch_that_memory_does_not_hold_names_its_setting() -> None:
    words = r"^evaluation needs more memory than .*; lower evaluate\.batch_size \(now 4\)$"
    with pytest.raises(UserError, match=words):
        list(answers(lambda samples: torch.empty(len(samples) << 58), 10, 4))
