"""References of a text where ``refbert_dist`` is not installed: this file lies in the model folder and stands alone.

It needs torch, transformers, safetensors and bm25s::

    model = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    references = References(FOLDER)
    tokens = tokenizer(text, text_b, truncation="longest_first", return_tensors="pt", return_token_type_ids=True)
    logits = model(**tokens, **references(text, text_b)).logits

It reads the whole bank into memory, and of the rules by which a text is kept from reading itself it knows the plainest:
equal texts. ``refbert_dist.RefBertPipeline`` does neither.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn.utils.rnn import pad_sequence

SPARE = 24
"""Candidates beyond k, for those that must not be read."""


class References:
    """The texts of a bank, an index over them, and their projected keys and values."""

    def __init__(self, folder: str | Path) -> None:
        """``folder`` is the model's."""
        bank = Path(folder) / "bank"
        self._said: dict[str, Any] = json.loads((bank / "bank.json").read_text(encoding="utf-8"))
        update, sentences = self._said["update"], self._said["sentences"]
        stored = load_file(bank / f"texts-{update}.safetensors")
        content = stored["bytes"].tobytes()
        parts = [content[start:stop].decode() for start, stop in pairwise(stored["offsets"].tolist())]
        self.texts = [" ".join(parts[row : row + sentences]) for row in range(0, len(parts), sentences)]
        self._rows = load_file(bank / f"rows-{update}.safetensors")
        self._segments = [load_file(bank / name) for name in self._said["segments"]]
        self._barred = set(np.flatnonzero(np.isin(self._rows["ids"], self._said["left_out"])).tolist())
        settings = json.loads((bank / f"index-{update}" / "settings.json").read_text(encoding="utf-8"))
        self._stop_words = "english" if settings["stop_words"] == "english" else None
        self._index = bm25s.BM25()
        self._index.index(self._words(self.texts, return_ids=True), show_progress=False)

    def __call__(self, *sentences: str | None) -> dict[str, Any]:
        """What the model's forward takes beside the tokens of one text or pair."""
        rows = self.lookup(" ".join(part for part in sentences if part is not None))
        # Without any, one place that is masked stands for none.
        mask = [torch.ones(int(self._rows["lengths"][row])) for row in rows] or [torch.zeros(1)]
        nothing = [torch.zeros(1, self._said["width"])]
        states = ([self._state(row, kind) for row in rows] or nothing for kind in ("keys", "values"))
        keys, values = (pad_sequence(of_rows, batch_first=True)[None] for of_rows in states)
        return {
            "reference_keys": keys,
            "reference_values": values,
            "reference_mask": pad_sequence(mask, batch_first=True)[None],
            "references_projected": True,
        }

    def lookup(self, text: str) -> list[int]:
        """Rows of the nearest texts, best first."""
        wanted = min(self._said["count"] + SPARE, len(self.texts))
        rows, scores = self._index.retrieve(self._words([text], return_ids=False), k=wanted, show_progress=False)
        plain = " ".join(text.lower().split())
        allowed = [
            row
            for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0 and row not in self._barred and " ".join(self.texts[row].lower().split()) != plain
        ]
        return allowed[: self._said["count"]]

    def _words(self, texts: list[str], return_ids: bool) -> Any:
        return bm25s.tokenize(texts, stopwords=self._stop_words, return_ids=return_ids, show_progress=False)

    def _state(self, row: int, kind: str) -> torch.Tensor:
        segment, start = self._segments[self._rows["segments"][row]], int(self._rows["starts"][row])
        span = slice(start, start + int(self._rows["lengths"][row]))
        states = segment[kind][span].astype(np.float32)
        scale = segment.get(f"{kind}.scale")
        return torch.from_numpy(states if scale is None else states * scale[span, None])
