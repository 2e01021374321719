"""Answers with the vote of references mixed in."""

import numpy as np
import pytest

from refbert_dist.data.tasks import task_spec
from refbert_dist.diagnostics.tables import sheets
from refbert_dist.diagnostics.votes import SHARES, mixed_with_votes

SST2, STSB = task_spec("SST-2"), task_spec("STS-B")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 400).astype(np.float32)


def answers(known: float) -> np.ndarray:
    """Logits that are right with the given probability, with a margin that does not tell."""
    said = np.where(RNG.random(len(LABELS)) < known, LABELS, 1 - LABELS).astype(int)
    return np.eye(2, dtype=np.float32)[said]


def test_the_ends_are_the_student_and_the_vote() -> None:
    student, votes = answers(0.8), 8 * answers(0.7)
    found = mixed_with_votes(student, votes, LABELS, SST2)
    assert found["scores"][0] == pytest.approx((student.argmax(axis=1) == LABELS).mean())
    assert found["scores"][-1] == pytest.approx((votes.argmax(axis=1) == LABELS).mean())
    assert (found["metric"], found["shares"]) == ("accuracy", list(SHARES))


def test_votes_that_know_what_the_student_does_not_are_found_on_the_other_half() -> None:
    sure = RNG.random(len(LABELS)) < 0.5
    right = np.eye(2, dtype=np.float32)[LABELS.astype(int)]
    student = np.where(sure[:, None], 9 * right, 0.1 * (1 - right))
    votes = np.where(sure[:, None], 8 * (1 - right), 8 * right)
    found = mixed_with_votes(student, votes, LABELS, SST2)
    assert found["scores"][0] == pytest.approx(sure.mean()) and found["scores"][-1] == pytest.approx((~sure).mean())
    assert found["chosen"] == max(found["scores"]) == 1.0 and all(0 < share < 1 for share in found["chosen_shares"])


def test_votes_that_know_nothing_are_left_out_but_for_chance() -> None:
    found = mixed_with_votes(answers(0.9), 8 * answers(0.5), LABELS, SST2)
    assert found["chosen"] == pytest.approx(found["scores"][0], abs=0.02)


def test_scores_are_mixed_as_they_are() -> None:
    gold = RNG.uniform(0, 5, 200)
    student, votes = (gold + RNG.normal(0, 1, 200))[:, None], (gold + RNG.normal(0, 1, 200))[:, None]
    found = mixed_with_votes(student, votes, gold, STSB)
    assert found["metric"] == "pearson" and found["scores"][5] > max(found["scores"][0], found["scores"][-1])
    expected = np.corrcoef(0.5 * student[:, 0] + 0.5 * votes[:, 0], gold)[0, 1]
    assert found["scores"][5] == pytest.approx(expected)


def test_the_table_has_a_column_for_each_share() -> None:
    row = {"system": "tinybert", **mixed_with_votes(answers(0.8), answers(0.7), LABELS, SST2)}
    nothing = {"measure": "accuracy", "rows": 400, "information": [], "attention": [], "by_label": []}
    sheet = sheets({**nothing, "by_similarity": [], "mixed": [row]})[-1]
    assert sheet.headings == ["student", "0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.8", "1", "chosen"]
    assert sheet.rows[0][0] == "TinyBERT" and len(sheet.rows[0]) == len(sheet.headings)
    assert not any("vote" in sheet.title for sheet in sheets({**nothing, "by_similarity": []}))
