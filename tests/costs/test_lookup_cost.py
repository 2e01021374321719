import pytest

from refbert_dist.costs.lookup import bm25_cost, dense_cost
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.references.bm25 import PART_ROWS, Bm25


def test_the_index_is_as_large_as_foretold() -> None:
    words = [document.split() for document in python_docs_documents()]
    pieces = [" ".join(found[start : start + 95]) for found in words for start in range(0, len(found) - 94, 95)]
    found = 8 * Bm25.build(pieces, "english").postings
    # 95 words of running text are about 120 tokens; this text is technical, so it is not met exactly.
    assert bm25_cost(1, len(pieces), 120).index_bytes == pytest.approx(found, rel=0.35)


def test_measured_lookups_are_met() -> None:
    """Milliseconds a query of 2006 Wikipedia, measured without guards."""
    measured = {(68_671, 120): 0.236, (274_684, 120): 0.812, (1_030_065, 120): 2.680, (1_030_065, 34): 0.654}
    for (pool, tokens), milliseconds in measured.items():
        each = bm25_cost(1000, pool, tokens).search_s - bm25_cost(1000, 1, 1).search_s
        assert each == pytest.approx(milliseconds, rel=0.1)


def test_time_follows_the_queries_and_memory_the_pool() -> None:
    one, two = bm25_cost(10**6, 10**6, 128), bm25_cost(2 * 10**6, 10**6, 128)
    assert two.search_s == pytest.approx(2 * one.search_s)
    assert two.memory_bytes == one.memory_bytes > one.index_bytes
    # What is needed to build a part does not grow with the number of parts.
    larger = bm25_cost(10**6, 4 * PART_ROWS, 128).memory_bytes - bm25_cost(10**6, 2 * PART_ROWS, 128).memory_bytes
    assert larger < 2 * PART_ROWS * 1500
    assert dense_cost(10**6, 10**6, 128, 768).search_s > 10 * one.search_s
