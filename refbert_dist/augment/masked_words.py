"""What a masked language model would say in the place of a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from refbert_dist.augment.words import Slot
from refbert_dist.cache.plan import batches_by_length
from refbert_dist.data.batching import pad_tokens
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.errors import UserError
from refbert_dist.models.masked_lm import MaskedLm

Key = tuple[int, int]
"""Number of a sentence, and of a slot in it."""


@dataclass(frozen=True)
class _Input:
    """[masked sentence ; the same sentence unmasked], and where the mask is."""

    ids: np.ndarray
    types: np.ndarray
    place: int


class MaskedWords:
    """Candidates for words of one piece, each seen as a model's mask in its own sentence."""

    def __init__(self, model: MaskedLm, spec: str, field: str, batch_tokens: int) -> None:
        self._model = model
        self._tokenizer = load_tokenizer(spec, field)
        self._batch_tokens = batch_tokens
        if self._tokenizer.mask_token_id is None:
            raise UserError(
                f"{field} is '{spec}', whose tokenizer has no mask token; name another model, or set "
                "task.augment.candidates=glove"
            )
        self._words: dict[int, str | None] = {}

    @classmethod
    def load(cls, spec: str, field: str, batch_tokens: int, device: torch.device) -> MaskedWords:
        """Load model and tokenizer."""
        return cls(MaskedLm.load(spec, field, device), spec, field, batch_tokens)

    def candidates(self, slots: Sequence[Sequence[Slot]], sentences: Sequence[str], count: int) -> dict[Key, list[str]]:
        """Of the ``count`` likeliest tokens in the place of each slot of each sentence those that are words.

        Slots that are not exactly one piece are not in it.
        """
        inputs: dict[Key, _Input] = {}
        for number, (found_in, sentence) in enumerate(zip(slots, sentences, strict=True)):
            inputs.update(((number, place), made) for place, made in self._masked(found_in, sentence))
        keys = list(inputs)
        lengths = np.array([len(made.ids) for made in inputs.values()], np.int64)
        found: dict[Key, list[str]] = {}
        for batch in batches_by_length(lengths, np.arange(len(keys)), self._batch_tokens):
            asked = [keys[number] for number in batch.tolist()]
            for key, tokens in zip(asked, self._likeliest([inputs[key] for key in asked], count), strict=True):
                found[key] = [word for token in tokens if (word := self._word(token)) is not None]
        return found

    def _masked(self, slots: Sequence[Slot], sentence: str) -> list[tuple[int, _Input]]:
        """An input for each slot that is one piece, with the slot's number."""
        encoded = self._tokenizer(
            sentence,
            sentence,
            truncation="longest_first",
            max_length=min(self._model.max_length, self._tokenizer.model_max_length),
            return_token_type_ids=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids, types = (np.array(encoded[name], np.int64) for name in ("input_ids", "token_type_ids"))
        first = [place for place, sequence in enumerate(encoded.sequence_ids()) if sequence == 0]
        spans = [(place, *encoded["offset_mapping"][place]) for place in first]
        made = []
        for number, slot in enumerate(slots):
            pieces = [place for place, start, stop in spans if start < slot.stop and stop > slot.start]
            if len(pieces) == 1:
                masked = ids.copy()
                masked[pieces[0]] = self._tokenizer.mask_token_id
                made.append((number, _Input(masked, types, pieces[0])))
        return made

    def _likeliest(self, inputs: Sequence[_Input], count: int) -> list[list[int]]:
        batch = pad_tokens([made.ids for made in inputs], [made.types for made in inputs], self._model.pad_token_id)
        places = torch.tensor([made.place for made in inputs])
        logits = self._model.logits({name: torch.from_numpy(array) for name, array in batch.items()}, places)
        tokens: list[list[int]] = logits.topk(min(count, logits.shape[1])).indices.tolist()
        return tokens

    def _word(self, token: int) -> str | None:
        """The word that a token is; None for one that continues a word, or is none."""
        if token not in self._words:
            text = self._tokenizer.decode([token]).strip()
            # After a space, as in a sentence: a byte-level vocabulary has other tokens for the start of a text.
            alone = text.isalpha() and self._tokenizer.encode(f" {text}", add_special_tokens=False) == [token]
            self._words[token] = text if alone else None
        return self._words[token]
