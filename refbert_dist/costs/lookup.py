"""What a lookup takes, before it is started: time of one core, and memory of each process.

The constants are measured by ``benchmarks/lookup.py`` on 2006 Wikipedia, in samples of 120 tokens and of 33, pools of
69 thousand to a million rows, and SST-2, one thread (AMD EPYC with AVX-512); the formulas meet those within 10 %.
Another kind of text may have more words in common: SST-2's phrases have 1.7 times, the documentation of one program
three times as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from refbert_dist.costs.extents import CHARACTERS_PER_TOKEN
from refbert_dist.references.bm25 import PART_ROWS, POSTING_BYTES

WORDS_PER_TOKEN = 0.435
"""Different words that count (no stop words) for each token of a sample."""
COMMON_WORDS = 6.1e-4
"""How probable it is that a word of one sample is a given word of another: what two samples of n and m words have in
common is n * m * COMMON_WORDS words, and as many entries of the index are read for each pair."""
POSTING_S, ROW_S, WORD_S = 1.2e-9, 0.4e-9, 1.5e-6
"""Seconds for each entry that is read, for each row of the pool, and for each word and part of the index."""
QUERY_S = 0.15e-3
"""Seconds for reading, encoding and guarding a query."""
BUILD_S = 0.2e-6
"""Seconds to index a token of the pool."""
PAIR_S = 0.14e-9
"""Dense, flat: seconds for each pair of query and pool row, and each dimension."""

TEXT_OVERHEAD_BYTES = 160
"""Of a text that Python holds, with its number and document."""
PROCESS_BYTES = 0.5e9
"""Of a process that holds nothing yet."""
BUILD_BYTES_PER_TOKEN = 20.0
"""While one part of the index is built."""


@dataclass(frozen=True)
class LookupCost:
    """Of one part's neighbours."""

    search_s: float
    """Core seconds of all queries together, whatever the number of processes."""
    build_s: float
    """Core seconds in which each process builds its index."""
    index_bytes: float
    """Of the index in each process."""
    memory_bytes: float
    """Of each process at its peak."""


def bm25_cost(queries: int, pool: int, tokens: float) -> LookupCost:
    """BM25 lookup of ``queries`` samples in ``pool`` rows, both of ``tokens`` tokens on average."""
    words = tokens * WORDS_PER_TOKEN
    parts = math.ceil(pool / PART_ROWS)
    each = QUERY_S + words * parts * WORD_S + pool * (ROW_S + words * words * COMMON_WORDS * POSTING_S)
    index_bytes = pool * words * POSTING_BYTES
    texts = pool * (tokens * CHARACTERS_PER_TOKEN + TEXT_OVERHEAD_BYTES)
    building = min(pool, PART_ROWS) * tokens * BUILD_BYTES_PER_TOKEN
    return LookupCost(
        queries * each, pool * tokens * BUILD_S, index_bytes, PROCESS_BYTES + index_bytes + texts + building
    )


def dense_cost(queries: int, pool: int, tokens: float, width: int) -> LookupCost:
    """Exact (flat) dense lookup; ivf and hnsw take less time, and hnsw up to 256 bytes a row more for its links."""
    texts = pool * (tokens * CHARACTERS_PER_TOKEN + TEXT_OVERHEAD_BYTES)
    # What is kept in half precision, faiss's own copy, and while it is built the vectors as they were pooled.
    index_bytes = pool * width * 6.0
    each = QUERY_S + pool * width * PAIR_S
    memory_bytes = PROCESS_BYTES + index_bytes + pool * width * 4.0 + texts
    return LookupCost(queries * each, pool * tokens * BUILD_S, index_bytes, memory_bytes)
