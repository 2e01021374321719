from refbert_dist.augment.copies import copies_of
from refbert_dist.augment.words import Slot, replaceable

PAIR = ("Old trees fall", "New houses burn")


def slots(sentence: str) -> list[Slot]:
    return [
        Slot(slot.start, slot.stop, slot.word, tuple(f"{slot.word}{end}" for end in "abcd"))
        for slot in replaceable(sentence)
    ]


def copies(count: int, probability: float = 0.4, seed: int = 0) -> list[tuple[str, str | None]]:
    return copies_of(PAIR, [slots(sentence) for sentence in PAIR], count, probability, seed)


def test_copies_differ_from_the_row_and_from_each_other() -> None:
    made = copies(500)
    assert len(made) == len(set(made)) < 500
    assert PAIR not in made
    assert all(len(text.split()) == 3 for copy in made for text in copy if text)


def test_both_sentences_of_a_pair_are_changed() -> None:
    made = copies(100)
    assert {copy[0] != PAIR[0] and copy[1] != PAIR[1] for copy in made} == {True, False}


def test_words_are_replaced_as_often_as_asked_and_candidates_drawn_evenly() -> None:
    word = Slot(0, 1, "x", ("a", "b", "c", "d"))
    drawn = [copies_of(("x", None), [[word]], 1, 0.4, seed) for seed in range(4000)]
    changed = [copy[0][0] for copy in drawn if copy]
    assert 1480 < len(changed) < 1720  # 1600 +- 4 standard deviations
    assert all(320 < changed.count(letter) < 480 for letter in "abcd")


def test_probability_0_gives_no_copy_and_1_replaces_every_word() -> None:
    assert copies(50, 0.0) == []
    changed = copies(50, 1.0)
    original = [word for sentence in PAIR for word in sentence.split()]
    assert changed and all(
        word not in original for copy in changed for sentence in copy if sentence for word in sentence.split()
    )


def test_copies_are_a_function_of_seed_and_row() -> None:
    assert copies(20) == copies(20)
    assert copies(20)[:5] == copies(6)[:5]
    assert copies(20, seed=1) != copies(20)


def test_a_single_sentence_has_no_second() -> None:
    assert all(copy[1] is None for copy in copies_of((PAIR[0], None), [slots(PAIR[0])], 5, 0.5, 0))


def test_upper_and_lower_case_make_no_difference() -> None:
    word = Slot(0, 1, "x", ("Paris", "paris"))
    assert len(copies_of(("x", None), [[word]], 50, 1.0, 0)) == 1
