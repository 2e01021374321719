"""Predictions from an exported model folder alone, reference lookup included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.errors import UserError
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.references.bank import ReferenceBank

TextPair = tuple[str, str | None]


class Predictor:
    """A classifier or regressor with its tokenizer and reference bank."""

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        folder = Path(folder)
        config = folder / "config.json"
        if not config.exists():
            raise UserError(f"{folder} has no config.json; give the export folder of a finished run (RUN_DIR/export)")
        if "SequenceClassification" not in config.read_text(encoding="utf-8"):
            raise UserError(f"{folder} holds an encoder without a head; predictions need a run with a task section")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = RefBertForSequenceClassification.from_pretrained(folder).to(self.device).eval()
        self.tokenizer = load_tokenizer(str(folder))
        self.bank = ReferenceBank.open(folder / "bank", self.tokenizer) if self.model.config.reference_count else None

    def __call__(self, texts: Sequence[TextPair]) -> list[dict[str, Any]]:
        """One result for each text or pair: ``label`` and ``probabilities``, or ``score``; and its ``references``."""
        if not texts:
            return []
        pairs = [second for _, second in texts]
        if len({second is None for second in pairs}) > 1:
            raise UserError("some texts are pairs and some are not; give texts of one kind")
        encoded = self.tokenizer(
            [first for first, _ in texts],
            None if pairs[0] is None else pairs,
            truncation="longest_first",
            max_length=self.tokenizer.model_max_length,
            padding=True,
            # Some teachers' tokenizers, RoBERTa's for one, leave them out unless asked.
            return_token_type_ids=True,
            return_tensors="pt",
        )
        inputs = {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask", "token_type_ids")}
        found: np.ndarray | None = None
        if self.bank:
            found = self.bank.lookup(texts)
            keys, values, mask = self.bank.gather(found)
            inputs |= {
                "reference_keys": torch.from_numpy(keys).to(self.device),
                "reference_values": torch.from_numpy(values).to(self.device),
                "reference_mask": torch.from_numpy(mask).to(self.device),
            }
        with torch.inference_mode():
            logits = self.model(**inputs, references_projected=True).logits.float().cpu()
        return [self._result(row, None if found is None else found[index]) for index, row in enumerate(logits)]

    def stream(self, texts: Iterable[TextPair], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Results in the order of the texts, computed in batches."""
        remaining = iter(texts)
        while batch := list(islice(remaining, batch_size)):
            yield from self(batch)

    def _result(self, logits: torch.Tensor, references: np.ndarray | None) -> dict[str, Any]:
        result: dict[str, Any]
        if len(logits) == 1:
            result = {"score": round(logits.item(), 6)}
        else:
            probabilities = logits.softmax(-1).tolist()
            result = {"label": int(logits.argmax()), "probabilities": [round(value, 6) for value in probabilities]}
        if references is not None:
            result["references"] = [int(row) for row in references if row >= 0]
        return result


class _ServedModel:
    """A predictor as MLflow wants it."""

    def __init__(self, folder: str) -> None:
        self._predictor = Predictor(folder)

    def predict(self, frame: Any) -> list[dict[str, Any]]:
        """Answers to the rows of a data frame with the columns ``text`` and, for pairs, ``text_b``."""
        firsts = frame["text"]
        seconds = frame["text_b"] if "text_b" in frame else [None] * len(frame)
        # A frame says nan, or something of its own, where there is no text.
        texts = [
            (str(first), second if isinstance(second, str) else None)
            for first, second in zip(firsts, seconds, strict=True)
        ]
        return list(self._predictor.stream(texts))


def _load_pyfunc(folder: str) -> _ServedModel:
    """Called by MLflow for a registered model; see :mod:`refbert_dist.tracking.mlflow_model`."""
    return _ServedModel(folder)


def parse_lines(lines: Iterable[str]) -> Iterator[TextPair]:
    """One text a line; a tab parts the two sentences of a pair. All lines must be of the same kind."""
    columns = None
    numbered = enumerate(lines, start=1)
    while True:
        try:
            number, line = next(numbered)
        except StopIteration:
            return
        except UnicodeDecodeError:
            raise UserError("standard input is not UTF-8 text; convert it first") from None
        parts = line.rstrip("\r\n").split("\t")
        columns = columns or len(parts)
        if len(parts) > 2 or len(parts) != columns:
            raise UserError(
                f"line {number} has {len(parts)} tab-separated texts, expected {min(columns, 2)}; "
                "write one text, or two parted by a tab, on every line"
            )
        if not any(part.strip() for part in parts):
            raise UserError(f"line {number} is empty; every line needs a text")
        yield parts[0], parts[1] if len(parts) == 2 else None
