"""Against Gaussians, of which the mutual information is known: -log(1 - r^2) / 2 for each pair of coordinates."""

import math

import numpy as np
import pytest
import torch

from refbert_dist.diagnostics.estimators import (
    Principal,
    bound,
    bound_limit,
    info_nce,
    nearest_neighbours,
)


def gaussians(rows: int, dimensions: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x, noise = generator.standard_normal((2, rows, dimensions))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def known(dimensions: int, correlation: float) -> float:
    return -dimensions * math.log(1 - correlation**2) / 2


@pytest.mark.parametrize(("dimensions", "correlation"), [(1, 0.9), (4, 0.8), (4, 0.0)])
def test_the_bound_is_below_what_is_known_and_near(dimensions: int, correlation: float) -> None:
    wanted = known(dimensions, correlation)
    found = info_nce(gaussians(1500, dimensions, correlation, 0), gaussians(600, dimensions, correlation, 1), 0)
    assert 0.85 * wanted - 0.05 < found < wanted + 0.05


def test_the_bound_cannot_exceed_its_limit() -> None:
    x, _ = gaussians(600, 4, 0.0, 0)
    found = info_nce((x, x), (x[:64], x[:64]), 0)
    assert bound_limit(64) == math.log(64) and bound_limit(10**6) == math.log(1024)
    assert 0.6 * math.log(64) < found <= math.log(64)
    assert float(bound(1e4 * torch.eye(8))) == pytest.approx(math.log(8))
    assert float(bound(torch.zeros(8, 8))) == pytest.approx(0, abs=1e-6)


def test_the_seed_alone_decides() -> None:
    pairs = gaussians(300, 2, 0.8, 0), gaussians(100, 2, 0.8, 1)
    torch.manual_seed(5)
    before = torch.rand(1)
    first = info_nce(*pairs, 3)
    torch.manual_seed(5)
    assert torch.rand(1) == before
    assert first == info_nce(*pairs, 3) != info_nce(*pairs, 4)


@pytest.mark.parametrize(("dimensions", "correlation"), [(1, 0.0), (1, 0.9), (2, 0.6)])
def test_nearest_neighbours_know_what_is_known(dimensions: int, correlation: float) -> None:
    found = nearest_neighbours(*gaussians(2000, dimensions, correlation, 0))
    assert found == pytest.approx(known(dimensions, correlation), abs=0.07)


def test_rows_that_are_equal_are_no_trouble() -> None:
    x, y = gaussians(400, 1, 0.9, 0)
    assert math.isfinite(nearest_neighbours(np.round(x), np.zeros_like(y)))
    # A coordinate that says nothing takes nothing away.
    assert nearest_neighbours(x, np.hstack([y, np.zeros_like(y)])) == pytest.approx(nearest_neighbours(x, y), abs=1e-6)


def test_principal_components_have_unit_variance_and_nothing_stays_nothing() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 3)) * [5, 1, 0] + [1, 2, 3]
    found = Principal.of(rows, 3)(rows)
    assert found.std(axis=0) == pytest.approx([1, 1, 0], abs=1e-6)
    assert abs(np.corrcoef(found[:, 0], rows[:, 0])[0, 1]) > 0.99
    assert not Principal.of(np.zeros((10, 4)), 2)(np.zeros((5, 4))).any()
    assert Principal.of(rows, 64)(rows).shape == (200, 3)
