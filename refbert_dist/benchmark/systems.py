"""The systems that are compared, as they are called: their networks alone, and from text to answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from refbert_dist.benchmark.inputs import random_inputs
from refbert_dist.benchmark.models import Folders
from refbert_dist.config import Way, system_label
from refbert_dist.data.batching import pad_tokens
from refbert_dist.data.tokenizer import load_tokenizer, tokenized
from refbert_dist.inference.networks import Gathered, Network, Tokens, TorchNetwork
from refbert_dist.inference.pipeline import RefBertPipeline, open_network
from refbert_dist.references.guards import TextPair

OPTIONS: dict[Way, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "bf16": {"dtype": "bfloat16"},
    "compiled-bf16": {"dtype": "bfloat16", "compiled": True},
    "onnx": {"runtime": "onnx"},
    "onnx-int8": {"runtime": "onnx-int8"},
}
"""What a model is opened with."""

Call = Callable[[], object]


@dataclass(frozen=True)
class System:
    """One line of the tables."""

    name: str
    """``teacher``, ``tinybert`` or ``refbert``."""
    count: int = 0
    """References that it reads for each input."""

    @property
    def label(self) -> str:
        """For people."""
        return system_label(self.name, self.count)


class Transformers:
    """A model of transformers, used as most do: texts in the order in which they come, padded to the longest."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._tokenizer = load_tokenizer(str(folder))
        self.network = network

    def __call__(
        self, texts: Sequence[TextPair], batch_size: int, most: int | None = None, pad: bool = False
    ) -> list[int]:
        """The label of each text; cut to ``most`` tokens, to which ``pad`` also fills all up."""
        labels: list[int] = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            tokens = self._tokenizer(
                [first for first, _ in part],
                None if part[0][1] is None else [second for _, second in part],
                padding="max_length" if pad else True,
                truncation=True,
                max_length=most or self._tokenizer.model_max_length,
                return_tensors="np",
            )
            labels += softmax(self.network(dict(tokens), None), axis=1).argmax(axis=1).tolist()
        return labels


class Opened:
    """All systems, opened to compute in one way."""

    def __init__(self, folders: Folders, way: Way, longest: int) -> None:
        """``longest``: tokens of a reference."""
        options = OPTIONS[way]
        self._longest = longest
        self._plain = {
            name: Transformers(folder, open_network(folder, **options))
            for name, folder in {"teacher": folders.teacher, "tinybert": folders.tinybert}.items()
        }
        self.pipeline = RefBertPipeline(folders.refbert, verify=False, **options)

    def passes(self, system: System, batch: int, length: int) -> Call:
        """A forward pass of the network alone; what it takes is on the device already."""
        network = self.pipeline.network if system.name == "refbert" else self._plain[system.name].network
        tokens, references = random_inputs(self.pipeline.config, batch, length, system.count, self._longest)
        if isinstance(network, TorchNetwork):
            return partial(network.forward, network.inputs(tokens, references))
        return partial(network, tokens, references)

    def answers(self, system: System, batches: Sequence[Sequence[TextPair]]) -> Call:
        """The answer to the next batch of texts; after the last comes the first again."""
        texts = cycle(batches)
        if system.name != "refbert":
            plain = self._plain[system.name]
            return lambda: plain((batch := next(texts)), len(batch))
        pipeline = reading(self.pipeline, system.count)
        pipeline.batch_size = len(batches[0])
        return lambda: pipeline(next(texts))

    def steps(self, count: int, batches: Sequence[Sequence[TextPair]]) -> dict[str, Call]:
        """What RefBERT does with the next batch, each step apart."""
        pipeline = reading(self.pipeline, count)
        bank = pipeline.bank
        assert bank is not None
        texts, looked_up = cycle(batches), cycle(batches)
        found = cycle([bank.lookup(batch, count) for batch in batches])
        tokens = _padded(pipeline, batches[0], None)
        gathered = bank.gather(next(found))
        return {
            "tokenise": lambda: _padded(pipeline, next(texts), None),
            "look up": lambda: bank.lookup(next(looked_up), count),
            "load": lambda: bank.gather(next(found)),
            "predict": lambda: pipeline.network(tokens, gathered),
        }

    def on_rows(
        self, pipeline: RefBertPipeline, texts: Sequence[TextPair], batch_size: int, most: int
    ) -> dict[str, Call]:
        """All of a task's texts, cut to ``most`` tokens; all padded to that, and as each system does it by itself.

        ``pipeline`` has the task's bank.
        """
        teacher = self._plain["teacher"]
        pipeline.batch_size = batch_size
        pipeline.tokenizer.model_max_length = most
        return {
            "teacher, padded": partial(teacher, texts, batch_size, most, pad=True),
            "teacher": partial(teacher, texts, batch_size, most),
            "RefBERT, padded": partial(self._padded_throughout, pipeline, texts, batch_size, most),
            "RefBERT": partial(pipeline, texts),
        }

    def _padded_throughout(
        self, pipeline: RefBertPipeline, texts: Sequence[TextPair], batch_size: int, most: int
    ) -> None:
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            references: Gathered | None = None
            if pipeline.bank is not None:
                keys, values, mask = pipeline.bank.gather(pipeline.bank.lookup(part, pipeline.references))
                short = [(0, 0), (0, 0), (0, self._longest - mask.shape[2])]
                keys, values = (np.pad(states, [*short, (0, 0)]) for states in (keys, values))
                references = keys, values, np.pad(mask, short)
            pipeline.network(_padded(pipeline, part, most), references)


def reading(pipeline: RefBertPipeline, count: int) -> RefBertPipeline:
    """The same pipeline, weights and bank, but reading another number of references."""
    other = copy.copy(pipeline)
    other.references = count
    if not count:
        other.bank = None
    return other


def _padded(pipeline: RefBertPipeline, texts: Sequence[TextPair], most: int | None) -> Tokens:
    ids, types = tokenized(pipeline.tokenizer, texts)
    pad_id = pipeline.config["pad_token_id"]
    tokens = pad_tokens(ids, types, pad_id)
    if most is None:
        return tokens
    longest = tokens["input_ids"].shape[1]
    filled = {"input_ids": pad_id}
    return {
        name: np.pad(array, [(0, 0), (0, most - longest)], constant_values=filled.get(name, 0))
        for name, array in tokens.items()
    }
