"""Estimates of mutual information, in nats, from samples of two vectors.

Both are checked on Gaussians, whose mutual information is known. Neither is exact for states of hundreds of numbers:
compare what they say of one pair of vectors with what they say of controls, which share their errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

COMPONENTS = 64
"""Principal components that a critic reads of each vector."""
CRITIC_WIDTH, CODE_WIDTH = 128, 64
BATCH = 256
EPOCHS = 40
RATE = 1e-3
DECAY = 1e-2
VALIDATED = 0.15
"""Share of the rows to train on by which the best epoch is chosen."""
AT_ONCE = 1024
"""Held-out rows that are told apart from each other, at most."""
NEIGHBOURS = 4
"""Of the nearest-neighbour estimator."""


@dataclass(frozen=True)
class Principal:
    """The first principal components of a vector, each of unit variance, as found on some rows."""

    mean: np.ndarray
    map: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, components: int) -> Principal:
        """From rows ``[N, D]``; components without any variance become 0."""
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
        order = np.argsort(-values)[:components]
        kept = values[order]
        scales = np.where(kept > 1e-9 * max(1e-30, values.max()), 1 / np.sqrt(np.maximum(kept, 1e-30)), 0)
        return cls(mean, vectors[:, order] * scales)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Components float64 ``[N, C]`` of rows ``[N, D]``."""
        found: np.ndarray = (rows - self.mean) @ self.map
        return found


def nearest_neighbours(x: np.ndarray, y: np.ndarray) -> float:
    """The estimator of Kraskov, Stoegbauer and Grassberger (Physical Review E 69, 2004, equation 8).

    For vectors ``[N, D]`` of few numbers, each of about unit variance: it takes rows that are near in both for equally
    likely, which asks for more rows than there are as soon as there are many dimensions.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    # Rows that are equal in all would have a distance of 0.
    noise = np.random.default_rng(0)
    x, y = (part + 1e-10 * noise.standard_normal(part.shape) for part in (x, y))
    both = np.concatenate([x, y], axis=1)
    distances = cKDTree(both).query(both, k=NEIGHBOURS + 1, p=np.inf)[0][:, -1]
    inside = np.nextafter(distances, 0)
    # The row itself is counted, which is the + 1 of the equation.
    counts = [cKDTree(part).query_ball_point(part, inside, p=np.inf, return_length=True) for part in (x, y)]
    return float(digamma(NEIGHBOURS) + digamma(len(x)) - sum(digamma(count).mean() for count in counts))


class Critic(nn.Module):
    """Scores how well two vectors go together: the product of what two small networks make of each."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.codes = nn.ModuleList(
            nn.Sequential(nn.Linear(width, CRITIC_WIDTH), nn.ReLU(), nn.Linear(CRITIC_WIDTH, CODE_WIDTH))
            for width in (first, second)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``[N, N]``: every row of ``x`` with every row of ``y``."""
        first, second = self.codes[0](x), self.codes[1](y)
        return first @ second.T / math.sqrt(CODE_WIDTH)  # type: ignore[no-any-return]


def bound(scores: Tensor) -> Tensor:
    """InfoNCE (arXiv 1807.03748): at most log N, and in the mean at most the mutual information.

    ``scores [N, N]`` of rows that were paired on the diagonal; the mean of both ways to read it.
    """
    right = torch.arange(len(scores))
    lost = (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2
    return math.log(len(scores)) - lost


def info_nce(train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], seed: int) -> float:
    """A lower bound of the mutual information of two vectors, by a critic that is trained on other rows.

    At most :func:`bound_limit`. All is drawn with ``seed``; vectors are ``[N, D]``, about of unit variance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(train[0]))
        x, y = (torch.from_numpy(part).float()[order] for part in train)
        kept = max(2, round(VALIDATED * len(x)))
        critic = _trained(x[kept:], y[kept:], x[:kept], y[:kept])
        others = torch.randperm(len(held_out[0]))
        first, second = (torch.from_numpy(part).float()[others] for part in held_out)
        size = min(len(first), AT_ONCE)
        with torch.no_grad():
            found = [
                bound(critic(first[start : start + size], second[start : start + size]))
                for start in range(0, len(first) - size + 1, size)
            ]
    return float(torch.stack(found).mean())


def bound_limit(rows: int) -> float:
    """What :func:`info_nce` cannot exceed with so many held-out rows."""
    return math.log(min(rows, AT_ONCE))


def _trained(x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> Critic:
    """A critic as it was after the epoch in which it did best on other rows."""
    critic = Critic(x.shape[1], y.shape[1])
    optimizer = torch.optim.AdamW(critic.parameters(), lr=RATE, weight_decay=DECAY)
    best, kept = -math.inf, critic.state_dict()
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            (-bound(critic(x[rows], y[rows]))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            score = float(bound(critic(other_x, other_y)))
        if score > best:
            best, kept = score, {name: value.clone() for name, value in critic.state_dict().items()}
    critic.load_state_dict(kept)
    return critic
