"""Demonstration data without a download: the language reference that every Python installation carries.

``pydoc_data.topics`` holds 79 help topics (65,000 words in Python 3.11). Long topics repeat whole short ones, so a
passage belongs to the shortest topic that has it and is used once.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from refbert_dist.artifacts import hash_strings
from refbert_dist.errors import UserError

BUILTIN_PREFIX = "builtin:"
PYTHON_DOCS = "builtin:python-docs"

MIN_WORDS = 12
NEAR = 4
"""A same-topic pair lies within this many passages: the ends of a long topic have little to do with each other."""
HARD_SHARE = 0.25
"""Share of the different-topic pairs whose partner is the passage that shares the most words."""
DEV_SHARE = 0.18
"""Share of the passages whose topics are held out."""
PROSE_WORDS = {
    *("the", "a", "an", "of", "to", "that", "it", "its", "be", "are", "by", "this", "which", "can", "may", "when"),
    *("from", "have", "has", "was", "will", "does", "any", "all", "other"),
}
"""Words that English prose is full of and that are no Python keywords: code and grammar have few of them."""
PROSE_SHARE = 0.12
NOTES = ("Changed in version", "New in version", "Deprecated since")
"""Beginnings of passages that say nothing about their topic."""

Row = tuple[str, str, int]
"""First passage, second passage, label (1: the same topic)."""


def python_docs_documents() -> Iterator[str]:
    """Yield one document a topic, one passage a line; each passage occurs once in all documents."""
    for passages in python_docs_topics().values():
        yield "\n".join(passages)


def python_docs_fingerprint() -> str:
    """Content hash of the passages: they differ between Python versions."""
    return hash_strings(part for topic, passages in python_docs_topics().items() for part in (topic, *passages))


@cache
def python_docs_topics() -> dict[str, tuple[str, ...]]:
    """Prose passages (at least 12 words, white space collapsed) of every topic, in order of the topics' names."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            f"'{PYTHON_DOCS}' needs the module pydoc_data, which this Python lacks; install the full standard library"
        ) from None
    owner: dict[str, str] = {}
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            passage = " ".join(paragraph.split())
            if _is_prose(passage):
                owner.setdefault(passage, topic)
    found: dict[str, list[str]] = {}
    for passage, topic in owner.items():
        found.setdefault(topic, []).append(passage)
    return {topic: tuple(found[topic]) for topic in sorted(found)}


def _is_prose(passage: str) -> bool:
    words = passage.split()
    if len(words) < MIN_WORDS or passage.startswith(NOTES):
        return False
    if "::=" in passage or ">>>" in passage or re.search(r"[*=~^-]{4,}", passage):
        return False
    return sum(word.lower() in PROSE_WORDS for word in words) >= PROSE_SHARE * len(words)


def same_topic_task(seed: int, held_out: float = 0.0) -> tuple[list[Row], list[Row]]:
    """Balanced pairs of passages, label 1 where both come from one topic: (train rows, dev rows).

    With ``held_out`` the second part is made of this share of the training topics' passages, instead of dev's.

    No topic and so no passage is in both. Most different-topic pairs are random; for the others the partner is the
    passage of another topic that shares the most words, so that word overlap alone does not give the label.
    The same Python version and seed give the same rows.
    """
    train, dev = _same_topic_rows(seed, held_out)
    return list(train), list(dev)


@cache
def _same_topic_rows(seed: int, held_out: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    topics = python_docs_topics()
    rng = random.Random(seed)
    names = list(topics)
    rng.shuffle(names)
    dev = _held_topics(names, DEV_SHARE)
    train = [name for name in names if name not in dev]
    if held_out:
        dev = _held_topics(train, held_out)
        train = [name for name in train if name not in dev]
    return _pairs({name: topics[name] for name in train}, rng), _pairs({name: topics[name] for name in dev}, rng)


def _held_topics(names: Sequence[str], share: float) -> list[str]:
    """The first of these topics that have at most this share of their passages."""
    topics = python_docs_topics()
    wanted = share * sum(len(topics[name]) for name in names)
    held: list[str] = []
    for name in names:
        # A large topic that would overshoot stays in train, whose variety it is worth more to.
        if sum(len(topics[other]) for other in held) + len(topics[name]) <= wanted:
            held.append(name)
    return held


def _pairs(topics: dict[str, tuple[str, ...]], rng: random.Random) -> tuple[Row, ...]:
    """Two rows for every passage: it and one of its topic, it and one of another topic."""
    owned = [(passage, topic) for topic, passages in topics.items() for passage in passages]
    words = {passage: frozenset(re.findall(r"[a-z]{3,}", passage.lower())) for passage, _ in owned}
    frequency = Counter(word for bag in words.values() for word in bag)
    used: set[frozenset[str]] = set()
    rows: list[Row] = []

    def add(first: str, partners: list[str], label: int) -> bool:
        for second in partners:
            pair = frozenset((first, second))
            if len(pair) == 2 and pair not in used:
                used.add(pair)
                rows.append((first, second, label) if rng.random() < 0.5 else (second, first, label))
                return True
        return False

    def overlap(first: str, second: str) -> float:
        # Rare words count more; long passages do not win by length alone.
        shared = sum(1.0 / frequency[word] for word in words[first] & words[second])
        return shared / (len(words[first] | words[second]) or 1)

    for first, topic in owned:
        place = topics[topic].index(first)
        near = topics[topic][max(0, place - NEAR) : place + NEAR + 1]
        if not add(first, rng.sample(near, len(near)), 1):
            continue
        others = [passage for passage, owner in owned if owner != topic]
        if rng.random() >= HARD_SHARE:
            rng.shuffle(others)
        else:
            others.sort(key=lambda other: -overlap(first, other))
        add(first, others, 0)
    rng.shuffle(rows)
    return tuple(rows)
