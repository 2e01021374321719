"""The texts of pairs, each by itself: what could be stored of an input where its texts are known before it comes."""

from __future__ import annotations

import numpy as np

from refbert_dist.data.tokens import TokenSet


class PairTexts(TokenSet):
    """Two samples for each pair of a token set: sample ``2 i`` is the first text of pair ``i``, ``2 i + 1`` its second.

    Each begins and ends with the special tokens of a single text and has token type 0. Texts and labels are not parted.
    """

    def __init__(self, pairs: TokenSet) -> None:
        super().__init__(pairs.artifact, pairs.shards)
        found = [_spans(pairs.ids(pair)) for pair in range(len(pairs))]
        self._spans = np.array(found, np.int32).reshape(-1, 2)
        self.lengths = np.diff(self._spans).ravel() + 2

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self, sample: int) -> np.ndarray:
        """See :class:`TokenSet`."""
        ids = super().ids(sample // 2)
        start, stop = self._spans[sample]
        return np.concatenate([ids[:1], ids[start:stop], ids[-1:]])

    def types(self, sample: int) -> np.ndarray:
        """See :class:`TokenSet`."""
        return np.zeros(self.lengths[sample], np.uint8)


def _spans(ids: np.ndarray) -> tuple[int, int, int, int]:
    """Where the two texts of a pair begin and end: between them stands one separator (BERT) or two (RoBERTa, MPNet)."""
    last = len(ids) - 1
    first_end = 1 + int(np.argmax(ids[1:] == ids[last]))
    second_start = first_end + (2 if ids[min(first_end + 1, last)] == ids[last] else 1)
    return 1, first_end, min(second_start, last), last
