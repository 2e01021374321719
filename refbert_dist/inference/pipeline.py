"""Answers from an exported model folder alone, reference lookup included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from refbert_dist.artifacts import read_json
from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.data.batching import pad_tokens
from refbert_dist.data.tokenizer import load_tokenizer, tokenized
from refbert_dist.errors import RefBertError, RefusedError, UserError
from refbert_dist.inference.folder import BANK, projections_fingerprint, read_manifest, verify_folder
from refbert_dist.inference.networks import Network, TorchNetwork
from refbert_dist.inference.onnx_model import OnnxNetwork, Runtime
from refbert_dist.models.labels import class_names, is_classifier, label_count
from refbert_dist.references.guards import TextPair

Text = str | Sequence[str | None]
"""One text, or one or two sentences in a tuple or list."""

SORTED_BATCHES = 32
"""Batches that are read ahead and sorted by length, so that little is padded."""


def open_network(
    folder: Path,
    device: str | None = None,
    *,
    runtime: Runtime = "torch",
    dtype: str = "float32",
    compiled: bool = False,
) -> Network:
    """The network of a model folder; arguments and errors are those of :class:`RefBertPipeline`."""
    if runtime == "torch":
        return TorchNetwork(folder, device, dtype, compiled)
    if dtype != "float32" or compiled:
        raise UserError(f"runtime is '{runtime}', which has a number format of its own and is compiled; drop both")
    return OnnxNetwork(folder, runtime, device)


class RefBertPipeline:
    """A classifier or regressor with its tokenizer and reference bank: texts in, labels and scores out.

    ::

        pipeline = RefBertPipeline("runs/demo/export")
        pipeline([("a first text", "a second text")])    # [{"label": 1, "probabilities": [...], "references": [...]}]
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | None = None,
        *,
        references: int | None = None,
        batch_size: int = 32,
        runtime: Runtime = "torch",
        dtype: str = "float32",
        compiled: bool = False,
        verify: bool = True,
    ) -> None:
        """Open a model.

        Args:
            folder: of the model, from ``refbert export``; it may be read-only.
            device: as torch names it; by default a GPU if there is one.
            references: to read for each text; by default as many as in training. 0 needs no bank.
            batch_size: texts in a forward pass.
            runtime: what computes; ``onnx`` and ``onnx-int8`` need a model that was exported with ``--onnx``.
            dtype: ``float32``, ``bfloat16`` or ``float16``.
            compiled: use ``torch.compile``; slow to start, then faster.
            verify: hash every file first, except the bank's states, which are checked as they are read.

        Raises:
            UserError: the folder holds no classifier, or no bank though references are to be read.
            RefusedError: a file is missing, has changed, or belongs to another model.
        """
        self.folder = Path(folder)
        manifest = verify_folder(self.folder) if verify else read_manifest(self.folder)
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        """The model's, as in ``config.json``."""
        if not is_classifier(self.config):
            raise UserError(f"{folder} holds an encoder without a head; predictions need a run with a task section")
        self.sentences: int = manifest["sentences"]
        """Of each text, 1 or 2."""
        self.batch_size = batch_size
        self.references: int = self.config["reference_count"] if references is None else references
        """Read for each text."""
        self.labels = label_count(self.config)
        """Classes; 1 of a regressor."""
        self._names = class_names(self.config)
        self.tokenizer = load_tokenizer(str(self.folder))
        self.bank = self._open_bank(verify) if self.references else None
        self.network: Network = open_network(self.folder, device, runtime=runtime, dtype=dtype, compiled=compiled)

    def _open_bank(self, verify: bool) -> ReferenceBank:
        if not self.config["reference_count"]:
            raise UserError(f"references is {self.references}, but {self.folder} was trained without; use 0")
        if not (self.folder / BANK).is_dir():
            raise UserError(
                f"{self.folder} has no reference bank ({BANK}/ is missing); export the model again, or predict without "
                "references, and somewhat worse, by references=0"
            )
        bank = ReferenceBank.open(self.folder / BANK, self.tokenizer)
        if verify:
            bank.verify(states=False)
        if bank.description.projections != projections_fingerprint(self.folder):
            raise RefusedError(
                f"the reference bank {bank.folder} belongs to another model: its states were projected with other "
                "weights; export the model again"
            )
        return bank

    def __call__(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """One answer for each text, or pair of sentences, in their order.

        ``label``, ``name`` where the task has names for its classes, and ``probabilities``; or ``score``, of a
        regressor. ``references`` are ids of the bank's texts that were read, best first.

        Raises :class:`UserError` when texts are not of the kind that the model was trained on.
        """
        logits, found = self.logits(texts)
        return [self._answer(row, ids) for row, ids in zip(logits, found, strict=True)]

    def logits(self, texts: Sequence[Text]) -> tuple[np.ndarray, list[list[int] | None]]:
        """Logits float32 ``[N, C]`` of texts, and the ids of the references that were read; None where none are."""
        known = self.checked(texts)
        ids, types = tokenized(self.tokenizer, known)
        logits = np.empty((len(known), self.labels), np.float32)
        read: list[list[int] | None] = [None] * len(known)
        # The longest first: what does not fit the memory shows at once.
        order = sorted(range(len(known)), key=lambda place: -len(ids[place]))
        for start in range(0, len(known), self.batch_size):
            places = order[start : start + self.batch_size]
            gathered = None
            if self.bank is not None:
                rows = self.bank.lookup([known[place] for place in places], self.references)
                gathered = self.bank.gather(rows)
                for place, of_text in zip(places, rows, strict=True):
                    read[place] = self.bank.ids[of_text[of_text >= 0]].tolist()
            tokens = pad_tokens(
                [ids[place] for place in places], [types[place] for place in places], self.config["pad_token_id"]
            )
            logits[places] = self.network(tokens, gathered)
        return logits, read

    def stream(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        """Answers in the order of the texts, which are read some batches ahead (with batches of one text: not ahead).

        An error in the source comes after the answers to the texts before it.
        """
        window = self.batch_size * SORTED_BATCHES if self.batch_size > 1 else 1
        source = iter(texts)
        while True:
            block: list[Text] = []
            error: RefBertError | None = None
            try:
                block.extend(islice(source, window))
            except RefBertError as raised:
                error = raised
            yield from self(block)
            if error:
                raise error
            if not block:
                return

    def warm_up(self) -> None:
        """Answer something, so that the first one who asks does not wait for what is made once."""
        self([("a",) * self.sentences] * self.batch_size)

    def checked(self, texts: Sequence[Text]) -> list[TextPair]:
        """Texts as they are looked up; raises :class:`UserError` for one that is not of the model's kind."""
        return [self._checked(number, text) for number, text in enumerate(texts, start=1)]

    def _checked(self, number: int, text: Text) -> TextPair:
        parts = [text] if isinstance(text, str) else [part for part in text if part is not None]
        if len(parts) != self.sentences:
            asked = "pairs of sentences" if self.sentences == 2 else "single texts"
            raise UserError(
                f"text {number} has {len(parts)} sentence(s), but this model reads {asked}; give {self.sentences} each"
            )
        return parts[0], parts[1] if self.sentences == 2 else None

    def _answer(self, logits: np.ndarray, references: list[int] | None) -> dict[str, Any]:
        answer: dict[str, Any]
        if len(logits) == 1:
            answer = {"score": round(float(logits[0]), 6)}
        else:
            label = int(logits.argmax())
            answer = {"label": label} | ({"name": self._names[label]} if self._names else {})
            answer["probabilities"] = [round(float(share), 6) for share in softmax(logits)]
        return answer if references is None else answer | {"references": references}
