"""What augmentation takes, before it is started.

The constants were measured on MRPC's training rows, one thread (AMD EPYC with AVX-512), with 30,000 GloVe vectors of 50
numbers, and the search also with 100,000 of 300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from refbert_dist.augment.glove import GLOVE, MAX_LINES
from refbert_dist.augment.sources import sources
from refbert_dist.config import Experiment
from refbert_dist.costs.extents import TEXT_PER_BYTE
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.work import Work, forward, teacher_shape
from refbert_dist.data.lines import numbered_lines
from refbert_dist.data.tasks import task_spec
from refbert_dist.models.locate import teacher_info

WORDS_PER_TOKEN = 0.41
"""Words that may be replaced for each token of a row."""
DIFFERENT_WORDS = 33.0
"""Different words among N are about so many times the root of N."""
WORD_S, DRAWN_S = 19e-6, 0.25e-6
"""Seconds to find a word of a row and give it its candidates, and to draw a token of a copy."""
NUMBER_S = 0.4e-6
"""Seconds to read a number of the vectors; each process reads them all."""
VECTOR_S, PRODUCT_S = 3.2e-9, 0.15e-9
"""Seconds for each vector that a word is compared with, and for each of its numbers."""


@dataclass(frozen=True)
class AugmentCost:
    """Of all copies together."""

    core_s: float
    """Core seconds, without tokenising the copies."""
    load_s: float
    """Core seconds in which each process reads the vectors."""
    masked: Work
    """Of the masked language model."""


def augment_cost(exp: Experiment, rows: Lengths, made: Lengths) -> AugmentCost:
    """Copies of ``rows``, which together with these are ``made``."""
    found = sources(exp)
    words = rows.tokens * WORDS_PER_TOKEN
    core_s, load_s = words * WORD_S + made.tokens * DRAWN_S, 0.0
    if found.glove:
        vectors, width = _extent(found.glove)
        compared = min(DIFFERENT_WORDS * math.sqrt(words), vectors) * vectors
        core_s += compared * (VECTOR_S + width * PRODUCT_S)
        load_s = vectors * width * NUMBER_S
    masked = Work()
    if found.masked_lm:
        assert exp.task
        info = teacher_info(found.masked_lm, found.field)
        shape = teacher_shape(info)
        # A word's own sentence stands twice in its input, and of a pair a sentence is half.
        length = min(rows.seen * (1 if task_spec(exp.task.name).is_pair else 2), info.max_positions)
        masked = forward(shape, words * length, length, max(1.0, words * length / exp.cache.batch_tokens))
        head = 2 * shape.hidden * (shape.hidden + info.vocab_size)
        masked += Work(words * head, words * (6 * shape.hidden + info.vocab_size))
    return AugmentCost(core_s, load_s, masked)


def _extent(path: Path) -> tuple[int, int]:
    """About how many vectors a file has, as far as they are read, and how many numbers each of them."""
    _, first = next(numbered_lines(path, GLOVE), (1, "word 0"))
    size = path.stat().st_size * TEXT_PER_BYTE.get(path.suffix, 1.0)
    return min(MAX_LINES, math.ceil(size / (len(first) + 1))), first.count(" ")
