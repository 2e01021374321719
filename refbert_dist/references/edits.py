"""Samples of which some tokens are exchanged: how near must a text be to be worth reading?"""

from __future__ import annotations

import numpy as np

from refbert_dist.data.tokens import TokenSet


class EditedTokens(TokenSet):
    """A token set whose samples have other tokens in some places, each with the same probability.

    What comes instead is drawn from the whole set, each sample as likely as the others, then each of its places.
    Special tokens stay and are never drawn, so lengths and types are those of the set; texts are not edited.
    """

    def __init__(self, tokens: TokenSet, share: float, seed: int) -> None:
        """``share`` of the tokens; the same ``seed`` gives a sample the same tokens, whenever it is asked for."""
        super().__init__(tokens.artifact, tokens.shards)
        self.share = share
        self.seed = seed

    def ids(self, sample: int) -> np.ndarray:
        """See :class:`TokenSet`."""
        ids = super().ids(sample).copy()
        generator = np.random.default_rng([self.seed, sample])
        for place in _words(ids)[generator.random(len(_words(ids))) < self.share]:
            ids[place] = self._drawn(generator)
        return ids

    def _drawn(self, generator: np.random.Generator) -> int:
        while True:
            ids = super().ids(int(generator.integers(len(self))))
            if len(words := _words(ids)):
                return int(ids[generator.choice(words)])


def _words(ids: np.ndarray) -> np.ndarray:
    """Places of the tokens that are not special; those are the ones that a sample begins or ends with."""
    return np.flatnonzero((ids != ids[0]) & (ids != ids[-1]))
