import subprocess
import sys
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.data.builtin import python_docs_topics
from refbert_dist.errors import UserError
from refbert_dist.references.bm25 import POSTING_BYTES, STOP_WORDS, Bm25, StopWords

PASSAGES = [passage for found in python_docs_topics().values() for passage in found][:300]


def search(retriever: Bm25, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    return retriever.search(retriever.encode(texts), k)


def test_the_most_similar_text_comes_first_and_strangers_never() -> None:
    pool = ["red apples and green pears", "green cars", "blue sky", "green green apples"]
    ids, scores = search(Bm25.build(pool, "english"), ["green apples", "zebra", "the and of", ""], 3)
    assert ids.tolist() == [[3, 0, 1], [-1] * 3, [-1] * 3, [-1] * 3]
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
    assert scores[0, 0] > scores[0, 1] > scores[0, 2] > 0
    assert not scores[1:].any()


def test_scores_are_bm25() -> None:
    """Against Lucene's formula computed by hand; a word that the query has twice counts twice."""
    pool = ["green apples are green", "apples fall", "blue sky over mountains", "deep sea"]
    words = [text.split() for text in pool]
    mean = sum(map(len, words)) / len(words)
    expected = []
    for text in words:
        score = 0.0
        for word in ("green", "apples", "apples"):
            found = sum(word in other for other in words)
            idf = log(1 + (len(words) - found + 0.5) / (found + 0.5))
            times = Counter(text)[word]
            score += idf * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        expected.append(score)
    ids, scores = search(Bm25.build(pool, "none"), ["green apples apples"], 4)
    assert ids.tolist() == [[0, 1, -1, -1]]
    np.testing.assert_allclose(scores[0, :2], expected[:2], rtol=1e-6)


@pytest.mark.parametrize("stop_words", ["english", "none"])
def test_agrees_with_bm25s(stop_words: StopWords) -> None:
    """An independent implementation of the same formula, asked for every row's score."""
    bm25s = pytest.importorskip("bm25s")
    language = "english" if stop_words == "english" else None
    index = bm25s.BM25()
    index.index(bm25s.tokenize(PASSAGES, stopwords=language, show_progress=False), show_progress=False)
    mine = Bm25.build(PASSAGES, stop_words)
    ids, scores = search(mine, PASSAGES, 12)
    for number, words in enumerate(bm25s.tokenize(PASSAGES, stopwords=language, return_ids=False, show_progress=False)):
        its = index.get_scores_from_ids(index.get_tokens_ids(words))
        np.testing.assert_allclose(scores[number], np.sort(its)[::-1][:12], atol=1e-4)
        np.testing.assert_allclose(its[ids[number]], scores[number], atol=1e-4)


def test_the_stop_words_are_those_of_lucene() -> None:
    stopwords = pytest.importorskip("bm25s.stopwords")
    assert STOP_WORDS["english"] == set(stopwords.STOPWORDS_EN)


@pytest.mark.parametrize("k", [1, 4, 40, 400])
def test_finds_what_a_full_scan_finds(k: int) -> None:
    retriever = Bm25.build(PASSAGES, "english", part_rows=70)
    every, every_score = search(retriever, PASSAGES[:60], len(PASSAGES))
    ids, scores = search(retriever, PASSAGES[:60], k)
    for row in range(60):
        # Sorted anew from the scores of all rows.
        dense = np.zeros(len(PASSAGES), np.float32)
        dense[every[row][every[row] >= 0]] = every_score[row][every[row] >= 0]
        order = [number for number in np.lexsort((np.arange(len(dense)), -dense)) if dense[number] > 0][:k]
        assert ids[row].tolist() == (order + [-1] * k)[:k]
        assert scores[row, : len(order)].tolist() == dense[order].tolist()


@pytest.mark.parametrize("part_rows", [1, 7, 64, 299, 300, 1000])
def test_parts_and_batches_do_not_show(part_rows: int) -> None:
    whole = Bm25.build(PASSAGES, "english")
    parts = Bm25.build(PASSAGES, "english", part_rows=part_rows)
    expected = search(whole, PASSAGES[:80], 9)
    for start, stop in ((0, 80), (0, 1), (1, 3), (3, 80)):
        for mine, its in zip(search(parts, PASSAGES[start:stop], 9), expected, strict=True):
            assert (mine == its[start:stop]).all()


def test_stop_words_are_a_choice() -> None:
    pool = ["this is the one", "that was not there"]
    with pytest.raises(UserError, match=r"set references.stop_words=none"):
        Bm25.build(["the and of", "it"], "english")
    assert search(Bm25.build(pool, "english"), ["this is"], 1)[0].tolist() == [[-1]]
    assert search(Bm25.build(pool, "none"), ["this is"], 1)[0].tolist() == [[0]]


@pytest.mark.parametrize("part_rows", [30, 1000])
def test_equal_scores_are_ordered_by_number_however_many_are_asked_for(part_rows: int) -> None:
    pool = ["same words here"] * 40 + ["same words here indeed"] + ["same words here"] * 40
    retriever = Bm25.build(pool, "english", part_rows)
    for k in (1, 5, 39, 81, 100):
        ids, _ = search(retriever, ["same words"], k)
        order = [*range(40), *range(41, 81), 40]
        assert ids[0].tolist() == (order + [-1] * k)[:k]


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    retriever = Bm25.build(PASSAGES, "english")
    long, long_scores = search(retriever, PASSAGES[:40], 100)
    short, short_scores = search(retriever, PASSAGES[:40], 7)
    assert (long[:, :7] == short).all()
    assert (long_scores[:, :7] == short_scores).all()
    assert (np.diff(long_scores) <= 0).all()
    assert (short[:, 0] == np.arange(40)).mean() > 0.9


def test_saved_index_gives_the_same_without_pickles_in_the_space_that_is_promised(tmp_path: Path) -> None:
    retriever = Bm25.build(PASSAGES, "english", part_rows=128)
    retriever.save(tmp_path / "index")
    files = list((tmp_path / "index").iterdir())
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    size = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    words = len({word for text in PASSAGES for word in text.lower().split()})
    assert POSTING_BYTES * retriever.postings < size < POSTING_BYTES * retriever.postings + 3 * 8 * (words + 1000)
    loaded = Bm25.load(tmp_path / "index")
    assert loaded.stop_words == "english"
    assert loaded.postings == retriever.postings
    for mine, its in zip(search(retriever, PASSAGES[:50], 9), search(loaded, PASSAGES[:50], 9), strict=True):
        assert (mine == its).all()


def test_the_index_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from refbert_dist.data.builtin import python_docs_topics\n"
        "from refbert_dist.references.bm25 import Bm25\n"
        "texts = [passage for found in python_docs_topics().values() for passage in found][:50]\n"
        "Bm25.build(texts, 'english').save(Path(sys.argv[1]))\n"
    )
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run([sys.executable, "-c", program, str(folder)], env={"PYTHONHASHSEED": seed}, check=True)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_what_a_query_costs_is_known() -> None:
    retriever = Bm25.build(["one two", "two three", "three two"], "none", part_rows=2)
    assert [retriever.visited(query) for query in retriever.encode(["two", "one three", "four"])] == [3, 3, 0]
