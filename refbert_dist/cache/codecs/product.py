"""At most 100 bytes a token: some residual stages over the whole state, then a product quantiser for what is left.

Each stage names the nearest of 256 centroids (1 byte) and hands on the difference; the product quantiser (Jégou et
al., 2011) cuts that into runs of 4 or 8 dimensions, again 1 byte each. The stages take 13 to 35 % off the product
quantiser's error (MiniLM, layers 3, 5 and 6, two kinds of text). Before it, a learned rotation (OPQ) took off nothing
and one to principal axes 29 % or nothing, depending on the layer, and every reader would have to undo them; scaling
each dimension to unit variance added to the error, of the states and of the attention scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refbert_dist.cache.codecs import PQ_ASKS
from refbert_dist.cache.codecs.scalar import require_finite
from refbert_dist.errors import UserError
from refbert_dist.faiss_library import load_faiss, one_thread

CENTROIDS = 256
SEED = 0
"""Of the first centroids. No experiment's: what lies in a cache must not depend on who came first."""
STAGE_ROUNDS, PRODUCT_ROUNDS = 10, 16
"""Rounds of k-means; twice as many make the error 1 % smaller."""
CHUNK = 1024
"""Tokens whose distances to all centroids are held at a time on an accelerator: 100 MB at width 768."""


class Product:
    """Codes ``[N, D + M]`` against a trained codebook: D stages, then M runs of T / M dimensions."""

    def __init__(self, codebook: Mapping[str, np.ndarray]) -> None:
        """``stages`` ``[D, 256, T]`` and ``product`` ``[M, 256, T / M]``, both float32."""
        self.stages = np.array(codebook["stages"])
        self.product = np.array(codebook["product"])
        self.runs, _, self.run = self.product.shape
        self.width = self.runs * self.run
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._entries = self.product.reshape(-1, self.run)
        self._first_entry = np.arange(self.runs, dtype=np.int32) * CENTROIDS

    def encode(self, states: Tensor) -> dict[str, np.ndarray]:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        require_finite(states)
        rest = states.float()
        codes = []
        for stage in self._on(rest.device)[0]:
            found = _nearest(rest, stage)
            codes.append(found[:, None].to(torch.uint8))
            rest = rest - stage[found]
        stage_codes = torch.cat(codes, -1).cpu().numpy()
        # faiss is three to six times as fast as torch on a CPU; an accelerator would wait for it.
        product_codes = self._on_cpu(rest) if rest.device.type == "cpu" else self.on_device(rest)
        return {"": np.concatenate([stage_codes, product_codes], -1)}

    def decode(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        codes = stored[""]
        entries = codes[:, len(self.stages) :] + self._first_entry
        states: np.ndarray = np.take(self._entries, entries, axis=0).reshape(len(codes), self.width)
        for number, stage in enumerate(self.stages):
            states += np.take(stage, codes[:, number], axis=0)
        return states

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._placed:
            self._placed[device] = torch.from_numpy(self.stages).to(device), torch.from_numpy(self.product).to(device)
        return self._placed[device]

    def _on_cpu(self, rest: Tensor) -> np.ndarray:
        # A loop over single tokens without BLAS, so the number of threads cannot change a bit.
        found: np.ndarray = self._quantiser.compute_codes(rest.numpy())
        return found

    def on_device(self, rest: Tensor) -> np.ndarray:
        """The same codes, ties apart, by torch where ``rest`` lies."""
        _, centroids = self._on(rest.device)
        half_norms = centroids.square().sum(-1)[:, None] / 2
        codes = torch.empty(len(rest), self.runs, dtype=torch.uint8, device=rest.device)
        for start in range(0, len(rest), CHUNK):
            runs = rest[start : start + CHUNK].view(-1, self.runs, self.run).transpose(0, 1)
            nearness = torch.baddbmm(half_norms, runs, centroids.transpose(1, 2), beta=-1)
            codes[start : start + CHUNK] = nearness.argmax(-1).T
        return codes.cpu().numpy()

    @cached_property
    def _quantiser(self) -> Any:
        return _quantiser(self.product)


def _nearest(states: Tensor, centroids: Tensor) -> Tensor:
    """Index ``[N]`` of the nearest centroid."""
    # A matrix product's last bits depend on the number of CPU threads; those of float64 decide nothing.
    precision = torch.float64 if states.device.type == "cpu" else torch.float32
    points, centroids = states.to(precision), centroids.to(precision)
    return (points @ centroids.T - centroids.square().sum(-1) / 2).argmax(-1)


def train(sample: np.ndarray, depth: int, run: int) -> dict[str, np.ndarray]:
    """Codebook of :class:`Product` from float32 ``[N, T]``: ``depth`` stages, then ``run`` dimensions a byte.

    Raises UserError when N is below 256, RefusedError when the sample is not finite.
    """
    if len(sample) < CENTROIDS:
        raise UserError(
            f"cache.codec is 'pq', whose codebook needs states of at least {CENTROIDS} tokens, but there are "
            f"{len(sample)}; use cache.codec=int4 for so small a corpus"
        )
    rest = torch.from_numpy(sample)
    require_finite(rest)
    stages: list[np.ndarray] = []
    for _ in range(depth):
        centroids = _stage(rest.numpy())
        stages.append(centroids.numpy())
        rest = rest - centroids[_nearest(rest, centroids)]
    return {"stages": np.stack(stages), "product": _product(rest.numpy(), run)}


def _stage(points: np.ndarray) -> Tensor:
    """Centroids ``[256, T]``."""
    faiss = load_faiss(*PQ_ASKS)
    # Fewer points than faiss likes for a centroid (39) are the caller's choice, so no warning.
    means = faiss.Kmeans(points.shape[1], CENTROIDS, niter=STAGE_ROUNDS, seed=SEED, min_points_per_centroid=1)
    with one_thread(faiss):
        means.train(points)
    return torch.from_numpy(means.centroids)


def _product(points: np.ndarray, run: int) -> np.ndarray:
    """Centroids ``[M, 256, run]`` of all runs at once: k-means, whose points are assigned by the encoder itself.

    faiss's own training goes run by run and is an order of magnitude slower for samples of less than 30,000 tokens.
    """
    tokens, width = points.shape
    runs = points.reshape(tokens, width // run, run)
    start = np.random.default_rng(SEED).choice(tokens, CENTROIDS, replace=False)
    centroids = np.ascontiguousarray(runs[start].transpose(1, 0, 2))
    first_entry = np.arange(len(centroids), dtype=np.int64) * CENTROIDS
    for _ in range(PRODUCT_ROUNDS):
        entries = (_quantiser(centroids).compute_codes(points) + first_entry).ravel()
        counts = np.bincount(entries, minlength=centroids.size // run)[:, None]
        sums = [np.bincount(entries, runs[..., place].ravel(), len(counts)) for place in range(run)]
        means = np.stack(sums, -1) / np.maximum(counts, 1)
        # An entry that no point is nearest to stays where it is.
        centroids = np.where(counts, means, centroids.reshape(means.shape)).reshape(centroids.shape).astype(np.float32)
    return centroids


def _quantiser(centroids: np.ndarray) -> Any:
    """faiss's encoder for centroids ``[M, 256, run]``."""
    faiss = load_faiss(*PQ_ASKS)
    quantiser = faiss.ProductQuantizer(len(centroids) * centroids.shape[2], len(centroids), 8)
    faiss.copy_array_to_vector(centroids.ravel(), quantiser.centroids)
    return quantiser
