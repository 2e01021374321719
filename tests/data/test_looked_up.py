"""The made-up task whose answer is in the reference and nowhere else."""

import re

from refbert_dist.data.looked_up import COLOURS, OWNERS, looked_up_task
from refbert_dist.references.bm25 import Bm25


def owner(text: str) -> str:
    """The only word that is in no other kind of row."""
    return next(word for word in re.findall(r"\w+", text) if word in NAMES)


TRAIN, DEV = looked_up_task(0)
FACTS = [row for row in TRAIN if "door" in row[0]]
NAMES = {word for text, _ in FACTS for word in text.split()} - {
    word for text, _ in FACTS for other, _ in FACTS if text != other for word in set(text.split()) & set(other.split())
}


def test_every_owner_has_one_fact_and_at_most_one_question() -> None:
    assert len(FACTS) == OWNERS == len(NAMES)
    asked = [owner(text) for text, _ in TRAIN if "door" not in text]
    of_dev = [owner(text) for text, _ in DEV]
    assert len(asked) == len(set(asked)) == OWNERS // 2 and len(of_dev) == len(set(of_dev)) == OWNERS // 4
    assert not set(asked) & set(of_dev)


def test_a_fact_says_its_label_and_a_question_does_not() -> None:
    assert all(COLOURS[label] in text.split() and COLOURS[1 - label] not in text.split() for text, label in FACTS)
    assert not any(colour in text for text, _ in DEV for colour in COLOURS)


def test_questions_have_the_label_of_the_owners_fact_which_bm25_finds() -> None:
    index = Bm25.build([text for text, _ in TRAIN], "english")
    (nearest,) = index.search(index.encode([text for text, _ in DEV]), 1)[0].T
    for (text, label), row in zip(DEV, nearest.tolist(), strict=True):
        fact, told = TRAIN[row]
        assert "door" in fact and owner(fact) == owner(text) and told == label


def test_labels_are_balanced_and_follow_from_the_seed() -> None:
    assert 0.4 < sum(label for _, label in DEV) / len(DEV) < 0.6
    assert looked_up_task(0) == (TRAIN, DEV)
    assert looked_up_task(1)[1] != DEV


def test_held_out_asks_about_owners_of_train_instead() -> None:
    train, held = looked_up_task(0, 0.25)
    assert len(held) == OWNERS // 8 and len(train) == OWNERS + OWNERS // 2 - len(held)
    assert {text.split()[-1] for text, _ in held} <= {text.split()[-1] for text, _ in TRAIN}
    assert not {text for text, _ in held} & {text for text, _ in DEV}
