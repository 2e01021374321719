import pytest

from refbert_dist.references.guards import (
    GUARDS,
    contains,
    equal_text,
    evaluation_rows,
    refusal,
    same_document,
    word_set,
)

A = ("The cat sat on the mat.", None)
PAIR = ("The cat sat on the mat.", "A dog ran far away.")


def test_a_stranger_is_allowed() -> None:
    assert refusal(A, ("Something else entirely is said.", None), query_document=1, row_document=2) is None
    assert refusal(PAIR, ("One thing is said here.", "Another thing is said there.")) is None


def test_guards_are_asked_in_order() -> None:
    fired = [
        refusal(A, A, same_row=True, query_document=1, row_document=1),
        refusal(A, A, query_document=1, row_document=1),
        refusal(A, ("Yes, the cat sat on the mat again.", None), query_document=1, row_document=1),
        refusal(A, ("Something else entirely is said.", None), query_document=1, row_document=1, same_parent=True),
        refusal(A, ("Something else entirely is said.", None), query_document=1, row_document=2, same_parent=True),
    ]
    assert tuple(fired) == GUARDS


@pytest.mark.parametrize(
    ("query", "row", "equal"),
    [
        (A, ("  the CAT sat\ton the mat. ", None), True),
        (A, ("The cat sat on the mat", None), False),
        (PAIR, ("a dog ran far away.", "the cat sat on the mat."), True),
        (PAIR, ("The cat sat on the mat.", "A dog ran."), False),
        (A, PAIR, False),
    ],
)
def test_equal_text(query: tuple[str, str | None], row: tuple[str, str | None], equal: bool) -> None:
    assert equal_text(query, row) is equal
    assert equal_text(row, query) is equal


@pytest.mark.parametrize(
    ("query", "row", "held"),
    [
        (("the cat sat", None), ("Yesterday, the cat sat down.", None), True),
        (("The cat: sat!", None), ("the cat sat", None), True),
        (("he cat sat on", None), ("the cat sat on", None), False),
        (("the cat sat", None), ("the cat sated", None), False),
        # Two words lie in many texts by chance.
        (("he left", None), ("Then he left the house.", None), False),
        (("it is", None), ("it is", None), False),
        (("", None), ("any text at all", None), False),
        (PAIR, ("Well, the cat sat on the mat. Yes.", "And a dog ran far away indeed."), True),
        (PAIR, ("And a dog ran far away indeed.", "Well, the cat sat on the mat. Yes."), True),
        (PAIR, ("Well, the cat sat on the mat. Yes.", "No dog at all."), False),
        (A, PAIR, False),
    ],
)
def test_contains(query: tuple[str, str | None], row: tuple[str, str | None], held: bool) -> None:
    assert contains(query, row) is held
    assert contains(row, query) is held


def test_same_document_needs_a_known_number_or_a_common_sentence() -> None:
    other = ("Something else.", None)
    assert same_document(A, other, 3, 3)
    assert not same_document(A, other, 3, 4)
    assert not same_document(A, other, -1, -1)
    assert same_document(PAIR, ("a DOG ran far away.", "Something else."), -1, -1)
    assert not same_document(PAIR, ("A dog ran.", "Something else."), 1, 2)
    assert not same_document(PAIR, A, -1, 0)


def test_evaluation_rows_are_those_with_the_whole_text() -> None:
    pool = [A, PAIR, ("The cat sat on the mat.", "Something else."), PAIR[::-1], ("Other.", None)]
    assert evaluation_rows(pool, [("the cat  sat on the mat.", None)]) == [0]
    assert evaluation_rows(pool, [PAIR]) == [1, 3]
    assert evaluation_rows(pool, []) == []


def test_words() -> None:
    assert word_set(("One, two!", "two Three")) == {"one", "two", "three"}
