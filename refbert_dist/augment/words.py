"""Which words of a sentence may be replaced, and the sentence with some of them replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
"""A contraction is one word, and none that consists of letters alone."""
# Words that make a sentence's grammar: articles, pronouns, prepositions, conjunctions, auxiliaries, negations.
GRAMMAR = (
    "a an the this that these those some any no none each every either neither both all such same other another "
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "
    "herself it its itself they them their theirs themselves one who whom whose which what whatever whoever here there "
    "where when why how while because since until unless although though if whether than as so but and or nor not yet "
    "also too only just very about above across after against along among around at before behind below beneath beside "
    "between beyond by despite down during except for from in inside into near of off on onto out outside over per "
    "through throughout till to toward towards under up upon via with within without am is are was were be been being "
    "do does did done doing have has had having will would shall should can could may might must ought cannot"
)
STOP_WORDS = frozenset(GRAMMAR.split())


@dataclass(frozen=True)
class Slot:
    """A word of a sentence, its place, and what may stand there instead."""

    start: int
    stop: int
    word: str
    candidates: tuple[str, ...] = ()


def replaceable(sentence: str) -> list[Slot]:
    """The words of a sentence that may be replaced: of two letters at least, nothing but letters, no stop words."""
    found = WORD.finditer(sentence)
    return [Slot(match.start(), match.end(), match.group()) for match in found if _is_content(match.group())]


def _is_content(word: str) -> bool:
    return len(word) > 1 and word.isalpha() and word.lower() not in STOP_WORDS


def usable(word: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """The candidates that are words and not ``word`` itself, none twice, written as ``word`` is.

    In the order of the alphabet, so that of two that are as near as each other none comes first by chance.
    """
    kept = {_cased(word, candidate) for candidate in candidates if candidate.isalpha()}
    return tuple(sorted(candidate for candidate in kept if candidate.lower() != word.lower()))


def _cased(word: str, candidate: str) -> str:
    if word.isupper():
        return candidate.upper()
    return candidate[0].upper() + candidate[1:] if word[0].isupper() else candidate


def rewritten(sentence: str, chosen: Iterable[tuple[Slot, str]]) -> str:
    """The sentence with each slot, in the order of their places, replaced; all else stays as it is."""
    parts = []
    done = 0
    for slot, replacement in chosen:
        parts += [sentence[done : slot.start], replacement]
        done = slot.stop
    return "".join([*parts, sentence[done:]])
