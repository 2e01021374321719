"""Other references for a finished model: texts come and go, while its weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.bank.states import State
from refbert_dist.bank.writer import add_texts, remove_texts, replace_texts
from refbert_dist.data.batching import pad_tokens
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokenizer import load_tokenizer, tokenized
from refbert_dist.errors import UserError
from refbert_dist.inference.folder import BANK, read_manifest
from refbert_dist.models.locate import model_folder, weights_fingerprint
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.models.teacher import Teacher
from refbert_dist.references.guards import TextPair
from refbert_dist.references.states import taught_labels, with_label

BATCH_TEXTS = 32


class BankEditor:
    """Changes the bank of a model folder, which must be writable. Readers that have it open are not disturbed."""

    def __init__(self, folder: str | Path) -> None:
        """Raises :class:`UserError` when there is no model, or it has no bank."""
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.sentences: int = manifest["sentences"]
        """Of each text, 1 or 2."""
        self._highest_label = task_spec(manifest["task"]).label_range[1]
        self._bank = self.folder / BANK
        self._tokenizer = load_tokenizer(str(self.folder))

    def open(self) -> ReferenceBank:
        """The bank as it is now."""
        return ReferenceBank.open(self._bank, self._tokenizer)

    def add(self, texts: Sequence[TextPair], teacher: str) -> list[int]:
        """Add texts, and return their ids; ``teacher`` is the one that the model was distilled from."""
        return add_texts(self._bank, texts, self._states(texts, teacher), self._tokenizer)

    def remove(self, ids: Sequence[int]) -> None:
        """Remove texts by the ids that answers name."""
        remove_texts(self._bank, ids, self._tokenizer)

    def rebuild(self, texts: Sequence[TextPair], teacher: str) -> list[int]:
        """Put texts in the place of all that are there, and return their ids, which are new ones."""
        return replace_texts(self._bank, texts, self._states(texts, teacher), self._tokenizer)

    @torch.inference_mode()
    def _states(self, texts: Sequence[TextPair], teacher: str) -> Iterator[State]:
        """The teacher's states of texts, projected by the model."""
        expected = self.open().description.teacher
        if weights_fingerprint(model_folder(teacher)) != expected:
            raise UserError(
                f"--teacher is '{teacher}', which is not the teacher whose states {self._bank} holds; give the "
                "fine-tuned teacher of the run that made the model"
            )
        model = RefBertForSequenceClassification.from_pretrained(self.folder).eval()
        config = model.config
        if config.reference_label == "gold":
            raise UserError(
                f"{self.folder} reads the gold labels of its references, which new texts do not have; remove texts "
                "only, or train with references.label=teacher"
            )
        taught = config.reference_label == "teacher"
        loaded = Teacher.load(teacher, model.num_labels if taught else None)
        layers = [config.reference_key_layer, config.reference_value_layer]
        length = config.reference_max_length - taught
        for start in range(0, len(texts), BATCH_TEXTS):
            ids, types = tokenized(self._tokenizer, texts[start : start + BATCH_TEXTS])
            tokens: dict[str, Any] = pad_tokens(ids, types, loaded.pad_token_id)
            inputs = {name: torch.from_numpy(array) for name, array in tokens.items()}
            states = [part[:, :length] for part in loaded(**inputs, layers=layers)]
            if taught:
                told = torch.from_numpy(taught_labels(loaded.logits(**inputs), self._highest_label))
                states = [with_label(part, told) for part in states]
            keys, values = model.project_references(*states)
            for place, row in enumerate(ids):
                kept = min(len(row), length) + taught
                yield keys[place, :kept].numpy(), values[place, :kept].numpy()
