"""Draws the copies of a row."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from refbert_dist.augment.words import Slot, rewritten
from refbert_dist.data.token_set import Text


def copies_of(row: Text, slots: Sequence[Sequence[Slot]], count: int, probability: float, seed: int) -> list[Text]:
    """Different copies of a row, ``count`` at most: what equals the row or an earlier copy (case aside) is left out.

    ``slots``: of each of its sentences. In every copy each slot is replaced with ``probability``, by one of its
    candidates, each as likely as the others. A function of the arguments alone: the first copies of a larger ``count``
    are those of a smaller one.
    """
    sentences = [sentence for sentence in row if sentence is not None]
    # Seeded with a text, so that it is the same in every process; only random() is promised to stay what it is.
    random = Random("\0".join([str(seed), *sentences]))
    seen = {_key(sentences)}
    copies: list[Text] = []
    for _ in range(count):
        changed = [
            _changed(sentence, found, probability, random) for sentence, found in zip(sentences, slots, strict=True)
        ]
        if _key(changed) not in seen:
            seen.add(_key(changed))
            copies.append((changed[0], changed[1] if len(changed) > 1 else None))
    return copies


def _changed(sentence: str, slots: Sequence[Slot], probability: float, random: Random) -> str:
    chosen = []
    for slot in slots:
        candidate = slot.candidates[int(random.random() * len(slot.candidates))]
        if random.random() < probability:
            chosen.append((slot, candidate))
    return rewritten(sentence, chosen)


def _key(sentences: Sequence[str]) -> tuple[str, ...]:
    return tuple(sentence.lower() for sentence in sentences)
