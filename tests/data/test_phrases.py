from refbert_dist.data.phrases import parent_groups

FILM = "A very funny film, and a short one."
PLAY = "The play is a very funny one."


def test_phrases_belong_to_the_longest_row_that_holds_them() -> None:
    rows = ["funny film", FILM, "a very funny film and", "Short one", PLAY, "the play"]
    assert parent_groups(rows) == [1, 1, 1, 1, 4, 4]


def test_a_phrase_of_two_sentences_belongs_to_none() -> None:
    rows = [FILM, "very funny", "the play is", PLAY, "funny", "a very funny"]
    groups = parent_groups(rows)
    assert groups[0] != groups[3] == groups[2]
    # Each of the three lies in both; a shorter one does not belong to a longer one that belongs to nothing.
    assert len({groups[0], groups[3], groups[1], groups[4], groups[5]}) == 5


def test_words_count_and_nothing_else() -> None:
    assert parent_groups(["red apples", "Red, apples!", "red apple", "tired apples"]) == [0, 0, 1, 2]
    # A phrase that occurs twice in one sentence has one parent.
    assert parent_groups(["round and round", "round"]) == [0, 0]


def test_rows_without_words_stand_for_themselves() -> None:
    groups = parent_groups(["...", "a b ...", "!", "...", "b"])
    assert groups[0] == groups[3] and len({groups[0], groups[1], groups[2]}) == 3 and groups[4] == groups[1]
