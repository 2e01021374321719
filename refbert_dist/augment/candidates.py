"""What each word of a sentence may become: the masked language model's words, GloVe's, or each for its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from refbert_dist.augment.glove import Glove
from refbert_dist.augment.words import Slot, replaceable, usable

if TYPE_CHECKING:
    from refbert_dist.augment.masked_words import Key, MaskedWords


class Candidates:
    """Words of one piece have the model's candidates, others their neighbours; without a model all have neighbours."""

    def __init__(self, per_word: int, glove: Glove | None, masked: MaskedWords | None) -> None:
        self._per_word = per_word
        self._glove = glove
        self._masked = masked

    def of(self, sentences: Sequence[str]) -> list[list[Slot]]:
        """The slots of each sentence for which there is a candidate."""
        slots = [replaceable(sentence) for sentence in sentences]
        words = {(number, place): slot for number, found in enumerate(slots) for place, slot in enumerate(found)}
        fitting: dict[Key, list[str]] = {}
        if self._masked:
            fitting = self._masked.candidates(slots, sentences, self._per_word)
        if self._glove:
            others = [key for key in words if key not in fitting]
            near = self._glove.nearest([words[key].word for key in others], self._per_word)
            fitting.update(zip(others, near, strict=True))
        filled: list[list[Slot]] = [[] for _ in sentences]
        for key, slot in words.items():
            if kept := usable(slot.word, fitting.get(key, ())):
                filled[key[0]].append(replace(slot, candidates=kept))
        return filled
