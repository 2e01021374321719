from pathlib import Path

import numpy as np
import pytest

from refbert_dist.references.dense import Dense, TokenVectors
from refbert_dist.references.nearest import IndexKind

pytest.importorskip("faiss")

KINDS: tuple[IndexKind, ...] = ("flat", "ivf", "hnsw")


def pool(count: int = 400, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32) + 3


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By plain numpy: cosines after the pool's mean is taken away."""
    mean = vectors.mean(axis=0)
    rows, wanted = vectors - mean, queries - mean
    cosines = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def test_flat_finds_what_a_full_scan_finds() -> None:
    vectors, queries = pool(), pool()[::7] + 0.1
    ids, scores = (dense := Dense.build(vectors, "flat")).search(list(dense.encode(queries)), 5)
    expected, cosines = exact(vectors, queries, 5)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(scores, cosines, atol=1e-3)  # vectors are kept in half precision
    assert (ids == expected).mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_recall_and_order_of_every_index(kind: IndexKind) -> None:
    vectors, queries = pool(3000), pool(3000)[::50] + 0.2
    dense = Dense.build(vectors, kind)
    ids, scores = dense.search(list(dense.encode(queries)), 8)
    flat = Dense.build(vectors, "flat").search(list(dense.encode(queries)), 8)[0]
    found = np.mean([len(set(mine) & set(its)) / 8 for mine, its in zip(ids.tolist(), flat.tolist(), strict=True)])
    assert found > 0.9
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_length_of_the_list_do_not_show(kind: IndexKind) -> None:
    dense = Dense.build(pool(1000), kind)
    queries = list(dense.encode(pool(1000)[::20] - 0.3))
    ids, scores = dense.search(queries, 40)
    for start, stop, k in ((0, 50, 3), (0, 1, 40), (1, 30, 17)):
        mine, its = dense.search(queries[start:stop], k)
        assert (mine == ids[start:stop, :k]).all()
        assert (its == scores[start:stop, :k]).all()
    assert dense.search([], 3)[0].shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_give_the_same_index(kind: IndexKind, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Dense.build(pool(2000), kind).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rows_are_ordered_by_number(kind: IndexKind) -> None:
    vectors = pool(200)
    crowd = np.arange(1, 200, 2)
    vectors[crowd] = vectors[1]
    dense = Dense.build(vectors, kind)
    for k in (1, 7, 60):
        ids, _ = dense.search(list(dense.encode(vectors[[1]])), k)
        assert ids[0].tolist() == crowd[:k].tolist()


def test_rows_that_point_away_are_not_neighbours() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [-1, 0], [-1, -0.1]], np.float32)
    dense = Dense.build(vectors, "flat")
    ids, scores = dense.search(list(dense.encode(np.array([[2, 0], [0, 0]], np.float32))), 4)
    assert sorted(ids[0, :2].tolist()) == [0, 1]
    assert ids[0, 2:].tolist() == [-1, -1]
    # The mean itself points nowhere.
    assert ids[1].tolist() == [-1] * 4
    assert not scores[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_finds_the_same(kind: IndexKind, tmp_path: Path) -> None:
    tokens = TokenVectors(np.eye(16, dtype=np.float16), np.ones(16, np.float32))
    dense = Dense.build(pool(600), kind, tokens)
    dense.save(tmp_path / "index")
    assert {path.suffix for path in (tmp_path / "index").iterdir()} == {".json", ".safetensors"}
    loaded = Dense.load(tmp_path / "index")
    assert loaded.tokens is not None
    queries = pool(600)[::9] + 0.1
    for mine, its in zip(
        dense.search(list(dense.encode(queries)), 9), loaded.search(list(loaded.encode(queries)), 9), strict=True
    ):
        assert (mine == its).all()
    Dense.build(pool(600), kind).save(tmp_path / "other")
    assert Dense.load(tmp_path / "other").tokens is None


def test_common_tokens_count_less() -> None:
    table = np.eye(3, dtype=np.float32)
    texts = [np.array([0, 1]), np.array([0, 2])] * 500
    tokens = TokenVectors.learn(table, texts)
    weights = 1e-3 / (1e-3 + np.array([0.5, 0.25, 0.25]))
    expected = weights[[0, 1]] / weights[[0, 1]].sum()
    np.testing.assert_allclose(tokens.of([np.array([0, 1])])[0], [*expected, 0], rtol=1e-3)
    assert tokens.of([np.array([1, 1, 0])])[0, 1] > 0.7
    # A token that the pool lacks counts in full; no token at all is no direction.
    assert not TokenVectors.learn(table, texts).of([np.array([], np.int64)]).any()
    alone = TokenVectors.learn(table, [np.array([0])]).of([np.array([0, 2])])[0]
    assert alone[2] > 0.99


def test_a_text_is_itself_in_any_company(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = TokenVectors.learn(rng.normal(size=(50, 24)), [rng.integers(50, size=9) for _ in range(30)])
    texts = [rng.integers(50, size=length) for length in (3, 60, 1, 17)]
    together = tokens.of(texts)
    assert all((tokens.of([text])[0] == vector).all() for text, vector in zip(texts, together, strict=True))
    tokens.save(tmp_path)
    assert (TokenVectors.load(tmp_path).of(texts) == together).all()
