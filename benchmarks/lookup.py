"""BM25 lookup with guards, against bm25s on the same texts, in one process of one thread.

    OMP_NUM_THREADS=1 python benchmarks/lookup.py [FILE.tsv COLUMN | FILE.txt]

A table with a header gives the texts of one column; plain text (``.gz`` too) is cut into pieces of 95 words, about 128
tokens, and each block between blank lines is a document; without a file the documentation that Python ships is used.
Every text is in the pool, and evenly spread ones are looked up. Rounds alternate; medians are printed, and the numbers
from which refbert_dist.costs.lookup computes what a lookup of any size takes.
"""

import csv
import gzip
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.guards import TextPair
from refbert_dist.references.search import MARGIN, GuardedSearch, Queries

QUERIES = 2000
ROUNDS = 3
PIECE_WORDS = 95
K = 8


def read(arguments: list[str]) -> tuple[list[str], np.ndarray]:
    """Texts, and the number of each one's document."""
    if len(arguments) == 2:
        with Path(arguments[0]).open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            texts = [row[arguments[1]] for row in rows]
        return texts, np.arange(len(texts))
    if arguments:
        path = Path(arguments[0])
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        documents = content.decode().split("\n\n")
    else:
        documents = list(python_docs_documents())
    pieces = [(piece, number) for number, document in enumerate(documents) for piece in cut(document.split())]
    return [piece for piece, _ in pieces], np.array([number for _, number in pieces])


def cut(words: list[str]) -> list[str]:
    return [" ".join(words[start : start + PIECE_WORDS]) for start in range(0, len(words), PIECE_WORDS)]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    texts, documents = read(sys.argv[1:])
    rows = np.unique(np.linspace(0, len(texts) - 1, QUERIES).round().astype(np.int64))
    queries = [texts[row] for row in rows]
    pairs: list[TextPair] = [(text, None) for text in texts]

    start = time.perf_counter()
    index = Bm25.build(texts, "english")
    build_s = time.perf_counter() - start
    encoded = index.encode(queries)
    guarded = GuardedSearch(pairs, documents, index)

    import bm25s

    tokens = bm25s.tokenize(texts, stopwords="english", show_progress=False)
    start = time.perf_counter()
    theirs = bm25s.BM25()
    theirs.index(tokens, show_progress=False)
    theirs_build_s = time.perf_counter() - start
    words = bm25s.tokenize(queries, stopwords="english", return_ids=False, show_progress=False)

    of_row = Queries([pairs[row] for row in rows], encoded, rows, documents[rows])
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: index.encode(queries),
        "search": lambda: index.search(encoded, K + MARGIN),
        "search + guards": lambda: guarded.find(of_row, K),
        "bm25s search": lambda: theirs.retrieve(words, k=K + MARGIN, show_progress=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            found = timed(work)
            if number:  # the first round warms up
                seconds[name].append(found)
    each = {name: statistics.median(found) / len(rows) for name, found in seconds.items()}
    visited = sum(index.visited(query) for query in encoded) / len(rows)
    content_words = sum(float(counts.sum()) for _, counts in encoded) / len(rows)

    print(f"{len(texts):,} texts of {content_words:.1f} words that count, {len(rows):,} looked up, k={K}+{MARGIN}")
    print(f"index            {build_s:.2f} s (bm25s without tokenising {theirs_build_s:.2f} s)")
    for name, mean in each.items():
        spread = ", ".join(f"{found / len(rows) * 1e3:.3f}" for found in sorted(seconds[name]))
        print(f"{name:16} {mean * 1e3:.3f} ms a query ({spread})")
    ratios = sorted(a / b for a, b in zip(seconds["bm25s search"], seconds["search"], strict=True))
    print(f"bm25s / search   {statistics.median(ratios):.1f}x (min {ratios[0]:.1f}x, max {ratios[-1]:.1f}x)")
    print(f"all with guards  {(each['encode'] + each['search + guards']) * len(texts) + build_s:.0f} s")
    print(
        f"postings         {index.postings / len(texts):.1f} a row, {8 * index.postings / len(texts):.0f} bytes a row"
    )
    print(
        f"visited          {visited:,.0f} a query, {visited / len(texts):.3f} a query and row, "
        f"{visited / len(texts) / content_words**2:.2e} by words squared"
    )
    print(f"search           {each['search'] / visited * 1e9:.2f} ns a posting, all in")


if __name__ == "__main__":
    main()
