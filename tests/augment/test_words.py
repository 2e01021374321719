from refbert_dist.augment.words import STOP_WORDS, Slot, replaceable, rewritten, usable


def words(sentence: str) -> list[str]:
    return [slot.word for slot in replaceable(sentence)]


def test_only_content_words_may_be_replaced() -> None:
    assert words("The 2nd bank didn't pay B2B customers, and it was not 4.5% cheaper (x).") == [
        "bank",
        "pay",
        "customers",
        "cheaper",
    ]
    assert words("Amrozi 's own naïve well-known café in U.S. shops") == [
        *("Amrozi", "own", "naïve", "well", "known", "café", "shops"),
    ]
    assert words(" ".join(STOP_WORDS)) == []
    assert words("") == []


def test_slots_are_where_the_words_are() -> None:
    sentence = "Old  trees, old houses."
    assert [sentence[slot.start : slot.stop] for slot in replaceable(sentence)] == ["Old", "trees", "old", "houses"]


def test_all_but_the_replaced_words_stays_as_it_is() -> None:
    sentence = "Old  trees, old houses."
    first, *_, last = replaceable(sentence)
    assert rewritten(sentence, []) == sentence
    assert rewritten(sentence, [(first, "Young"), (last, "streets")]) == "Young  trees, old streets."


def test_candidates_are_other_words_written_alike() -> None:
    assert usable("trees", ["wood", "Trees", "2nd", "##s", "oak", "wood", ".", ""]) == ("oak", "wood")
    assert usable("Trees", ["wood", "oak"]) == ("Oak", "Wood")
    assert usable("US", ["france"]) == ("FRANCE",)
    assert usable("trees", ["Paris"]) == ("Paris",)
    assert Slot(0, 1, "a").candidates == ()
