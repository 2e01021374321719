import subprocess
import sys
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.data.builtin import python_docs_topics
from refbert_dist.errors import UserError
from refbert_dist.references.retriever import RandomDraw, Retriever

PASSAGES = [passage for found in python_docs_topics().values() for passage in found][:300]


def test_the_most_similar_text_comes_first_and_strangers_never() -> None:
    pool = ["red apples and green pears", "green cars", "blue sky", "green green apples"]
    ids, scores = Retriever.build(pool, "english").search(["green apples", "zebra", "the and of", ""], 3)
    assert ids.tolist() == [[3, 0, 1], [-1] * 3, [-1] * 3, [-1] * 3]
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
    assert scores[0, 0] > scores[0, 1] > scores[0, 2] > 0
    assert not scores[1:].any()


def test_scores_are_bm25() -> None:
    """Against Lucene's formula computed by hand."""
    pool = ["green apples are green", "apples fall", "blue sky over mountains", "deep sea"]
    words = [text.split() for text in pool]
    mean = sum(map(len, words)) / len(words)
    expected = []
    for text in words:
        score = 0.0
        for word in ("green", "apples"):
            found = sum(word in other for other in words)
            idf = log(1 + (len(words) - found + 0.5) / (found + 0.5))
            times = Counter(text)[word]
            score += idf * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        expected.append(score)
    ids, scores = Retriever.build(pool, "none").search(["green apples"], 4)
    assert ids.tolist() == [[0, 1, -1, -1]]
    np.testing.assert_allclose(scores[0, :2], expected[:2], rtol=1e-6)


def test_stop_words_are_a_choice() -> None:
    pool = ["this is the one", "that was not there"]
    with pytest.raises(UserError, match=r"set references.stop_words=none"):
        Retriever.build(["the and of", "it"], "english")
    assert Retriever.build(pool, "english").search(["this is"], 1)[0].tolist() == [[-1]]
    assert Retriever.build(pool, "none").search(["this is"], 1)[0].tolist() == [[0]]


def test_equal_scores_are_ordered_by_number_however_many_are_asked_for() -> None:
    pool = ["same words here"] * 40 + ["same words here indeed"] + ["same words here"] * 40
    retriever = Retriever.build(pool, "english")
    for k in (1, 5, 39, 81, 100):
        ids, _ = retriever.search(["same words"], k)
        order = [*range(40), *range(41, 81), 40]
        assert ids[0].tolist() == (order + [-1] * k)[:k]


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    retriever = Retriever.build(PASSAGES, "english")
    long, long_scores = retriever.search(PASSAGES[:40], 100)
    short, short_scores = retriever.search(PASSAGES[:40], 7)
    assert (long[:, :7] == short).all()
    assert (long_scores[:, :7] == short_scores).all()
    assert (np.diff(long_scores) <= 0).all()
    assert (short[:, 0] == np.arange(40)).mean() > 0.9


def test_saved_index_gives_the_same_and_holds_no_pickle(tmp_path: Path) -> None:
    retriever = Retriever.build(PASSAGES, "english")
    retriever.save(tmp_path / "index")
    for path in (tmp_path / "index").iterdir():
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            assert path.suffix == ".json"
    for mmap in (True, False):
        loaded = Retriever.load(tmp_path / "index", mmap=mmap)
        assert loaded.stop_words == "english"
        for mine, its in zip(retriever.search(PASSAGES[:50], 9), loaded.search(PASSAGES[:50], 9), strict=True):
            assert (mine == its).all()


def test_the_index_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from refbert_dist.data.builtin import python_docs_topics\n"
        "from refbert_dist.references.retriever import Retriever\n"
        "texts = [passage for found in python_docs_topics().values() for passage in found][:50]\n"
        "Retriever.build(texts, 'english').save(Path(sys.argv[1]))\n"
    )
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run([sys.executable, "-c", program, str(folder)], env={"PYTHONHASHSEED": seed}, check=True)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_random_rows_depend_on_seed_and_number_alone() -> None:
    ids, scores = RandomDraw(100, seed=3).draw([5, 6, 5], 20)
    assert ids[0].tolist() == ids[2].tolist() != ids[1].tolist()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert not scores.any()
    assert ids[0].tolist() != RandomDraw(100, seed=4).draw([5], 20)[0][0].tolist()
    many, _ = RandomDraw(10, seed=0).draw(range(2000), 1)
    assert np.bincount(many[:, 0], minlength=10).min() > 120
