"""Texts of a wanted length, cut from the experiment's corpus, and those of its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from refbert_dist.config import BenchmarkConfig, Experiment
from refbert_dist.data.corpus import sources
from refbert_dist.data.samples import corpus_samples
from refbert_dist.data.tasks import load_task
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.errors import UserError
from refbert_dist.models.locate import resolve_model, teacher_info
from refbert_dist.references.guards import TextPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ASKED_SHARE = 8
"""One document in so many is cut into inputs; the others are known texts."""
INPUTS = 128
"""Different inputs of each length: what a system remembers of the last ones shall not help it."""
SLACK = 4
"""Tokens that a text may be short of its length, because none is cut within a word."""
VOCABULARY_CHARACTERS = 1 << 22
"""Of the corpus, from which a vocabulary is made."""
TASK_TEXTS = 128


@dataclass(frozen=True)
class Texts:
    """What is asked, and what is known."""

    tokenizer: PreTrainedTokenizerFast
    known: list[TextPair]
    """Texts of ``references.max_length`` tokens."""
    asked: dict[int, list[TextPair]]
    """Length -> texts of other documents."""
    task_known: list[TextPair]
    """Train rows of the task; none without a task."""
    task_asked: list[TextPair]
    """The first dev rows."""


def benchmark_texts(exp: Experiment, settings: BenchmarkConfig) -> Texts:
    """Cut and read them; raises :class:`UserError` when the corpus has no text of a wanted length."""
    tokenizer = _tokenizer(exp)
    asked = {length: list(islice(_cut(exp, tokenizer, length, True), INPUTS)) for length in settings.lengths}
    length = exp.references.max_length
    known = list(islice(_cut(exp, tokenizer, length, False), settings.pool_texts))
    for what, tokens, found in (*(("lengths", *item) for item in asked.items()), ("pool_texts", length, known)):
        if not found:
            raise UserError(
                f"benchmark.{what} asks for texts of {tokens} tokens, and the corpus has none; name a larger one by "
                "corpus.path, or ask for shorter ones"
            )
    task = exp.task
    rows = {split: load_task(task, split, exp.seed) if task else [] for split in ("train", "dev")}  # type: ignore[arg-type]
    train, dev = ([(row.text_a, row.text_b) for row in rows[split]] for split in ("train", "dev"))
    return Texts(tokenizer, known, asked, train[: settings.pool_texts], dev[:TASK_TEXTS])


def _documents(exp: Experiment) -> Iterator[str]:
    assert exp.corpus
    return chain.from_iterable(source.documents() for source in sources(exp.corpus))


def _cut(exp: Experiment, tokenizer: PreTrainedTokenizerFast, length: int, is_asked: bool) -> Iterator[TextPair]:
    documents = (
        text for number, text in enumerate(_documents(exp)) if (number % ASKED_SHARE == 0) == is_asked and text.strip()
    )
    for samples in corpus_samples(documents, tokenizer, length):
        for text, tokens in zip(samples.texts_a, samples.lengths.tolist(), strict=True):
            if tokens > length - SLACK:
                yield text, None


def _tokenizer(exp: Experiment) -> PreTrainedTokenizerFast:
    """The teacher's where it is on this machine, else one of BERT's kind whose vocabulary is learnt from the corpus."""
    place, info = resolve_model(exp.teacher.model), teacher_info(exp.teacher.model)
    tokenizer = load_tokenizer(place) if Path(place).is_dir() else _learnt(exp, info.vocab_size)
    tokenizer.model_max_length = info.max_positions
    return tokenizer


def _learnt(exp: Experiment, size: int) -> PreTrainedTokenizerFast:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    learner = BertWordPieceTokenizer()
    learner.train_from_iterator(_beginning(exp), vocab_size=size, show_progress=False)
    tokenizer: PreTrainedTokenizerFast = BertTokenizerFast(vocab=learner.get_vocab())
    return tokenizer


def _beginning(exp: Experiment) -> Iterator[str]:
    left = VOCABULARY_CHARACTERS
    for text in _documents(exp):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def batches(texts: Sequence[TextPair], size: int) -> list[list[TextPair]]:
    """All texts in batches of ``size``; the first ones come again to fill the last."""
    count = -(-len(texts) // size)
    return [[texts[(number * size + place) % len(texts)] for place in range(size)] for number in range(count)]
