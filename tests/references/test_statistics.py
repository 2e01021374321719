from collections import Counter

import numpy as np
import pytest

from refbert_dist.references import statistics as module
from refbert_dist.references.guards import TextPair
from refbert_dist.references.search import Found, Queries
from refbert_dist.references.statistics import compared, label_agreement, similarity, similarity_sums

QUERIES: list[TextPair] = [("one two", None), ("one two three four", None), ("five", None), ("six", None)]
POOL: list[TextPair] = [("ONE two!", None), ("four five", None)]
IDS = np.array([[0, 1], [1, -1], [1, 0], [-1, -1]])
SCORES = np.array([[4.0, 1.0], [2.0, 0.0], [3.0, 1.0], [0.0, 0.0]], np.float32)


def sums(numbers: range, ids: np.ndarray = IDS) -> dict[str, float]:
    part = slice(numbers.start, numbers.stop)
    found = Found(ids[part], SCORES[part], Counter())
    return similarity_sums(found, Queries.of_strangers(QUERIES[part], []), POOL, compared(numbers, 4))


def test_similarity_of_known_neighbours() -> None:
    found = similarity([sums(range(4))], 4)
    assert found["mean_random_overlap"] <= 1
    del found["mean_random_overlap"]
    assert found == {
        "share_with_all": 0.5,
        "share_with_any": 0.75,
        "mean_first_score": 3.0,
        "mean_first_overlap": pytest.approx((1 + 1 / 5 + 1 / 2) / 3),
        "overlap_sample": 4,
    }
    nothing = similarity([sums(range(4), np.full((4, 2), -1))], 4)
    assert not any(nothing[name] for name in ("share_with_all", "share_with_any", "mean_first_overlap"))


def test_shards_add_up() -> None:
    whole, parts = similarity([sums(range(4))], 4), similarity([sums(range(1)), sums(range(1, 4))], 4)
    for found in (whole, parts):
        del found["mean_random_overlap"]
    assert parts == pytest.approx(whole)


def test_random_pairs_are_never_a_row_with_itself() -> None:
    texts: list[TextPair] = [(f"word{number}", None) for number in range(3)]
    rows = np.arange(3).repeat(50)
    queries = Queries([texts[row] for row in rows], [], rows, rows)
    found = Found(np.full((150, 1), -1), np.zeros((150, 1), np.float32), Counter())
    assert similarity_sums(found, queries, texts, np.arange(150))["random_overlaps"] == 0
    strangers = Queries.of_strangers(queries.texts, [])
    assert 20 < similarity_sums(found, strangers, texts, np.arange(150))["random_overlaps"] < 80


@pytest.mark.parametrize("total", [1, 9, 10, 11, 25, 1000])
def test_compared_queries_are_spread_evenly_whatever_the_shards(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERLAP_QUERIES", 10)
    every = compared(range(total), total)
    assert min(total, 6) <= len(every) <= 10
    shards = [range(start, min(start + 7, total)) for start in range(0, total, 7)]
    assert np.concatenate([compared(shard, total) + shard.start for shard in shards]).tolist() == every.tolist()


def test_agreement_of_classes() -> None:
    pool = np.array([0, 1] * 500, np.float32)
    queries = np.array([0, 0, 1, 1] * 250, np.float32)
    first = np.tile([0, 2, 1, -1], 250)
    found = label_agreement(first, queries, pool, regression=False)
    assert found["nearest"] == 1.0
    assert found["random"] == pytest.approx(0.5, abs=0.02)
    assert found == label_agreement(first, queries, pool, regression=False)


def test_agreement_of_scores() -> None:
    pool = np.array([0.0, 5.0], np.float32)
    queries = np.array([1.0, 4.5, 2.5], np.float32)
    found = label_agreement(np.array([0, 1, -1]), queries, pool, regression=True)
    assert found["measure"] == "mean absolute difference"
    assert found["nearest"] == pytest.approx(0.75)
    assert 2.0 < found["random"] < 3.0
    assert label_agreement(np.full(3, -1), queries, pool, regression=True)["nearest"] is None
