import sys

import numpy as np
import pytest

from refbert_dist.errors import UserError
from refbert_dist.references.nearest import NearestIndex


def test_without_faiss_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'refbert-dist\[faiss\]'.*references.retriever=bm25"):
        NearestIndex.build(np.eye(3, dtype=np.float32), "flat")


def test_building_leaves_the_number_of_threads_as_it_was() -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    for kind in ("ivf", "hnsw"):
        NearestIndex.build(np.eye(300, 8, dtype=np.float32), kind)  # type: ignore[arg-type]
        assert faiss.omp_get_max_threads() == before


def test_fewer_vectors_than_asked_for() -> None:
    pytest.importorskip("faiss")
    ids = NearestIndex.build(np.eye(2, dtype=np.float32), "hnsw").search(np.eye(1, 2, dtype=np.float32), 4)
    assert ids[0].tolist()[:1] == [0]
    assert (ids[0, 2:] == -1).all()
