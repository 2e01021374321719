from pathlib import Path

import numpy as np

from refbert_dist.references.retriever import MAX_CANDIDATES, RandomDraw


def test_random_rows_depend_on_seed_and_text_alone() -> None:
    draw = RandomDraw(100, seed=3)
    five, six = draw.encode(["five", "six"])
    ids, scores = draw.search([five, six, five], 20)
    assert ids[0].tolist() == ids[2].tolist() != ids[1].tolist()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert not scores.any()
    assert ids[0].tolist() != RandomDraw(100, seed=4).search([five], 20)[0][0].tolist()
    many, _ = RandomDraw(10, seed=0).search(draw.encode([f"text {number}" for number in range(2000)]), 1)
    assert np.bincount(many[:, 0], minlength=10).min() > 120


def test_a_shorter_drawing_is_the_beginning_of_a_longer_one() -> None:
    for size in (5, 400, 5000):
        draw = RandomDraw(size, seed=0)
        long, _ = draw.search(draw.encode(["a", "b"]), MAX_CANDIDATES)
        short, _ = draw.search(draw.encode(["a", "b"]), 3)
        assert (long[:, :3] == short).all()
        assert (long[:, size:] == -1).all()
        assert (long[:, : min(size, MAX_CANDIDATES)] >= 0).all()


def test_a_saved_drawing_draws_the_same(tmp_path: Path) -> None:
    draw = RandomDraw(50, seed=7)
    draw.save(tmp_path / "index")
    loaded = RandomDraw.load(tmp_path / "index")
    assert (loaded.search(loaded.encode(["x"]), 9)[0] == draw.search(draw.encode(["x"]), 9)[0]).all()
