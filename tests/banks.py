"""A small bank of four texts."""

from pathlib import Path

import numpy as np

from refbert_dist.bank.states import State
from refbert_dist.bank.writer import write_bank
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import Retriever

TEXTS: list[TextPair] = [
    ("red apples grow on trees", None),
    ("blue birds sing at dawn", None),
    ("red pears grow on bushes", None),
    ("yellow lemons taste sour", None),
]
LENGTHS = (3, 1, 4, 2)
WIDTH = 5


def states(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[State]:
    rng = np.random.default_rng(seed)
    keys, values = ([rng.normal(size=(length, WIDTH)).astype(np.float32) for length in lengths] for _ in range(2))
    return list(zip(keys, values, strict=True))


def words(texts: list[TextPair] = TEXTS) -> Retriever:
    return Bm25.build([text for text, _ in texts], "english")


def write(folder: Path, **changes: object) -> Path:
    given = {"count": 2, "retriever": words(), **changes}
    write_bank(folder, TEXTS, iter(states()), **given)  # type: ignore[arg-type]
    return folder
