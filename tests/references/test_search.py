from collections.abc import Sequence

import numpy as np
import pytest

from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import MAX_CANDIDATES, RandomDraw
from refbert_dist.references.search import Found, GuardedSearch, Queries, joined


class Pool:
    """A pool that is searched for its own rows and for new texts."""

    def __init__(
        self,
        texts: list[TextPair],
        documents: Sequence[int] | None = None,
        left_out: Sequence[int] = (),
        parents: Sequence[int] | None = None,
        **changes: int,
    ) -> None:
        self.texts = texts
        self.documents = np.arange(len(texts)) if documents is None else np.array(documents)
        every = [joined(text) for text in texts]
        self.retriever = RandomDraw(len(texts), changes["seed"]) if "seed" in changes else Bm25.build(every, "english")
        known = None if parents is None else np.array(parents)
        self.search = GuardedSearch(texts, self.documents, self.retriever, left_out, known)

    def inside(self, rows: Sequence[int], k: int) -> Found:
        texts = [self.texts[row] for row in rows]
        encoded = self.retriever.encode([joined(text) for text in texts])
        return self.search.find(Queries(texts, encoded, np.array(rows), self.documents[rows]), k)

    def outside(self, texts: Sequence[TextPair], k: int) -> Found:
        encoded = self.retriever.encode([joined(text) for text in texts])
        return self.search.find(Queries.of_strangers(texts, encoded), k)


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
    found = Pool(APPLES).inside([0], 2)
    assert found.ids.tolist() == [[3, 4]]
    assert found.refused == {"self": 1, "equal_text": 1, "contains": 1}
    assert (found.scores[0] > 0).all()


def test_phrases_of_one_sentence_are_refused_only_inside_the_pool() -> None:
    # Row 4 is a phrase of the same sentence as row 0.
    pool = Pool(APPLES, parents=[0, 1, 2, 3, 0, 5])
    assert pool.inside([0, 4], 2).ids.tolist() == [[3, -1], [1, 3]]
    assert pool.inside([4], 5).refused == {"self": 1, "same_parent": 1}
    assert pool.outside(single("red apples grow on old trees, yes"), 2).ids.tolist() == [[2, 3]]


def test_rows_of_one_document_are_refused_only_inside_the_pool() -> None:
    documents = [0, 1, 2, 0, 3, 4]
    found = Pool(APPLES, documents).inside([0], 2)
    assert found.ids.tolist() == [[4, -1]]
    assert found.scores[0, 1] == 0
    assert found.refused["same_document"] == 1
    outside = Pool(APPLES, documents).outside(single("red apples grow quickly"), 5)
    assert sorted(outside.ids[0].tolist()) == [0, 1, 2, 3, 4]
    assert not outside.refused


def test_a_copy_is_refused_what_its_source_is_refused_and_what_it_must_not_read_itself() -> None:
    pool = Pool(APPLES, documents=[0, 1, 2, 3, 0, 5])
    texts = single("red pears grow on old trees", "red apples grow near old houses now")
    encoded = pool.retriever.encode([joined(text) for text in texts])
    found = pool.search.find(Queries(texts, encoded, np.array([0, 0]), np.array([0, 0])), 5)
    # Row 0 is the source, 1 equals it, 2 contains it and 4 is of its document; the second copy contains row 3 itself.
    assert found.ids[0].tolist() == [3, -1, -1, -1, -1]
    assert found.ids[1].tolist() == [-1] * 5
    assert found.refused == {"source": 8, "contains": 1}


def test_left_out_rows_serve_nobody_and_are_not_counted_as_refused() -> None:
    found = Pool(APPLES, left_out=(3,)).inside([0, 4], 2)
    assert found.ids[0].tolist() == [4, -1]
    assert 3 not in found.ids
    assert set(found.refused) == {"self", "equal_text", "contains"}


def test_pairs_with_a_common_sentence_are_refused_outside_too() -> None:
    pool: list[TextPair] = [
        ("green tea is served hot", "black coffee is served cold"),
        ("green tea is served with milk", "white coffee is served with sugar"),
    ]
    found = Pool(pool).outside([("Green tea is served hot", "coffee with nothing at all")], 2)
    assert found.ids.tolist() == [[1, -1]]
    assert found.refused == {"same_document": 1}


def test_the_search_widens_until_enough_rows_are_allowed() -> None:
    same = ["copper wire conducts heat well"] * 200
    pool = single(*same, "copper pipes", "copper pots", "wooden spoon")
    found = Pool(pool).inside([0, 202], 2)
    assert found.ids.tolist() == [[200, 201], [-1, -1]]
    assert found.refused["equal_text"] == 199


def test_widening_ends_at_the_cap() -> None:
    same = ["copper wire conducts heat well"] * (MAX_CANDIDATES + 50)
    found = Pool(single(*same, "copper pipes")).inside([0], 1)
    assert found.ids.tolist() == [[-1]]
    assert found.refused["equal_text"] == MAX_CANDIDATES - 1


def test_only_those_that_need_it_are_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    same = ["copper wire conducts heat well"] * 60
    pool = Pool(single(*same, "copper pipes", "copper pots", "wooden spoon", "wooden fork"))
    asked: list[tuple[int, int]] = []
    real = pool.retriever.search

    def search(queries: Sequence[object], k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append((len(queries), k))
        return real(queries, k)  # type: ignore[arg-type]

    monkeypatch.setattr(pool.retriever, "search", search)
    found = pool.inside([0, 62, 1, 63], 1)
    assert found.ids.tolist() == [[60], [63], [60], [62]]
    assert [number for number, _ in asked] == [4, 2]
    assert asked[0][1] < asked[1][1]


def test_result_and_counts_do_not_depend_on_how_queries_are_batched() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["ash", "oak", "elm", "fir", "yew", "pine", "palm", "beech", "birch", "maple", "cedar", "larch"])
    texts = single(*(" ".join(rng.choice(words, size=rng.integers(2, 7))) for _ in range(120)))
    pool = Pool(texts, [row // 10 for row in range(120)])
    whole = pool.inside(range(120), 3)
    parts = [pool.inside(range(start, start + 40), 3) for start in (0, 40, 80)]
    together = Found.joined(parts)
    assert (whole.ids == together.ids).all()
    assert (whole.scores == together.scores).all()
    assert whole.refused == together.refused


def test_a_slice_of_queries_keeps_what_is_known_of_each() -> None:
    queries = Queries(single("a", "b", "c"), [1, 2, 3], np.array([4, -1, 6]), np.array([7, 8, -1]))
    part = queries[1:3]
    assert (len(part), part.texts, part.encoded) == (2, single("b", "c"), [2, 3])
    assert (part.rows.tolist(), part.documents.tolist()) == ([-1, 6], [8, -1])


def test_a_query_outside_the_pool_can_still_be_of_one_of_its_documents() -> None:
    pool = Pool(APPLES, [0, 1, 2, 0, 3, 4])
    texts = single("red apples of another kind")
    known = Queries(texts, pool.retriever.encode([texts[0][0]]), np.array([-1]), np.array([3]))
    assert 4 not in pool.search.find(known, 6).ids
    assert 4 in pool.outside(texts, 6).ids


def test_random_references_are_allowed_and_fixed_by_seed_and_text() -> None:
    documents = [number // 3 for number in range(30)]

    def draw(seed: int, *texts: str) -> np.ndarray:
        return Pool(APPLES * 5, documents, [4], seed=seed).outside(single(*texts), 4).ids

    assert (draw(1, "a", "b", "c") == draw(1, "a", "b", "c")).all()
    assert (draw(1, "a", "b", "c")[1:] == draw(1, "b", "c")).all()
    assert (draw(1, "a", "b", "c") != draw(2, "a", "b", "c")).any()
    assert 4 not in draw(1, "a", "b", "c")
    inside = Pool(APPLES * 5, documents, seed=1).inside(range(30), 4)
    assert (inside.ids >= 0).all()
    assert all(row // 3 not in (ids // 3).tolist() for row, ids in enumerate(inside.ids))
    assert not inside.scores.any()
