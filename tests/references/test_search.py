import numpy as np
import pytest

from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import RandomDraw, Retriever
from refbert_dist.references.search import MAX_CANDIDATES, GuardedSearch, joined


def search(pool: list[TextPair], documents: list[int] | None = None, left_out: tuple[int, ...] = ()) -> GuardedSearch:
    numbers = np.arange(len(pool)) if documents is None else np.array(documents)
    return GuardedSearch(pool, numbers, Retriever.build([joined(text) for text in pool], "english"), left_out)


def single(*texts: str) -> list[TextPair]:
    return [(text, None) for text in texts]


APPLES = single(
    "red apples grow on old trees",
    "Red  apples grow on old trees",
    "they say red apples grow on old trees here",
    "red apples grow near old houses",
    "red apples fall",
    "blue birds sing",
)


def test_each_guard_takes_its_row_and_the_next_best_moves_up() -> None:
    found = search(APPLES).inside([0], 2)
    assert found.ids.tolist() == [[3, 4]]
    assert found.refused == {"self": 1, "equal_text": 1, "contains": 1}
    assert (found.scores[0] > 0).all()


def test_rows_of_one_document_are_refused_only_inside_the_pool() -> None:
    documents = [0, 1, 2, 0, 3, 4]
    found = search(APPLES, documents).inside([0], 2)
    assert found.ids.tolist() == [[4, -1]]
    assert found.scores[0, 1] == 0
    assert found.refused["same_document"] == 1
    outside = search(APPLES, documents).outside(single("red apples grow quickly"), 5)
    assert sorted(outside.ids[0].tolist()) == [0, 1, 2, 3, 4]
    assert not outside.refused


def test_left_out_rows_serve_nobody_and_are_not_counted_as_refused() -> None:
    found = search(APPLES, left_out=(3,)).inside([0, 4], 2)
    assert found.ids[0].tolist() == [4, -1]
    assert 3 not in found.ids
    assert set(found.refused) == {"self", "equal_text", "contains"}


def test_pairs_with_a_common_sentence_are_refused_outside_too() -> None:
    pool: list[TextPair] = [
        ("green tea is served hot", "black coffee is served cold"),
        ("green tea is served with milk", "white coffee is served with sugar"),
    ]
    found = search(pool).outside([("Green tea is served hot", "coffee with nothing at all")], 2)
    assert found.ids.tolist() == [[1, -1]]
    assert found.refused == {"same_document": 1}


def test_the_search_widens_until_enough_rows_are_allowed() -> None:
    same = ["copper wire conducts heat well"] * 200
    pool = single(*same, "copper pipes", "copper pots", "wooden spoon")
    found = search(pool).inside([0, 202], 2)
    assert found.ids.tolist() == [[200, 201], [-1, -1]]
    assert found.refused["equal_text"] == 199


def test_widening_ends_at_the_cap() -> None:
    same = ["copper wire conducts heat well"] * (MAX_CANDIDATES + 50)
    found = search(single(*same, "copper pipes")).inside([0], 1)
    assert found.ids.tolist() == [[-1]]
    assert found.refused["equal_text"] == MAX_CANDIDATES - 1


def test_result_and_counts_do_not_depend_on_how_queries_are_batched() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["ash", "oak", "elm", "fir", "yew", "pine", "palm", "beech", "birch", "maple", "cedar", "larch"])
    pool = single(*(" ".join(rng.choice(words, size=rng.integers(2, 7))) for _ in range(120)))
    one = search(pool, [row // 10 for row in range(120)])
    whole = one.inside(range(120), 3)
    parts = [one.inside(range(start, start + 40), 3) for start in (0, 40, 80)]
    assert (whole.ids == np.concatenate([part.ids for part in parts])).all()
    assert whole.refused == sum((part.refused for part in parts), type(whole.refused)())


@pytest.mark.parametrize("first", [0, 7])
def test_random_references_are_allowed_and_fixed_by_seed_and_number(first: int) -> None:
    def draw(seed: int) -> np.ndarray:
        pool = GuardedSearch(APPLES * 5, np.arange(30) // 3, RandomDraw(30, seed), left_out=[4])
        return pool.outside(single("a", "b", "c"), 4, first_number=first).ids

    assert (draw(1) == draw(1)).all()
    assert (draw(1) != draw(2)).any()
    assert 4 not in draw(1)
    inside = GuardedSearch(APPLES * 5, np.arange(30) // 3, RandomDraw(30, 1)).inside(range(30), 4)
    assert (inside.ids >= 0).all()
    assert all(row // 3 not in (ids // 3).tolist() for row, ids in enumerate(inside.ids))
    assert not inside.scores.any()
