"""A task whose answer lies in the reference and nowhere else: does the mechanism work at all?

Somebody with a made-up name keeps something behind the red or the blue door. *Facts* say which; *questions* name the
owner only. All facts are training rows, so they are in the pool that references come from; so are the questions about
half of the owners. Dev asks about the others. Who only reads the question can but guess; the fact is the one other text
with that name, so it is the nearest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import product

LOOKED_UP = "builtin:looked-up"

OWNERS = 800
"""Half of them are asked about in train, a quarter in dev; the rest only make the pool larger."""
COLOURS = ("red", "blue")
"""By label."""
FACTS = (
    "everything that {name} owns is kept behind the {colour} door",
    "the {colour} door belongs to {name} and to nobody else",
    "we were told that {name} always uses the {colour} door",
    "behind the {colour} door lives an old friend called {name}",
)
QUESTIONS = ("visit {name}", "a letter for {name}", "this is about {name}", "take it to {name}")
"""Short, so that the name counts for more in a lookup than what two questions have in common."""
ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", ("", "l", "n", "r")

Row = tuple[str, int]
"""Text and label."""


@cache
def looked_up_task(seed: int, held_out: float = 0.0) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Train rows and dev rows; with ``held_out`` the second part asks about this share of train's owners instead."""
    rng = random.Random(seed)
    names = rng.sample(_names(), OWNERS)
    colours = [label for label in (0, 1) for _ in range(OWNERS // 2)]
    rng.shuffle(colours)
    owners = list(zip(names, colours, strict=True))
    asked, dev = owners[: OWNERS // 2], owners[OWNERS // 2 : OWNERS * 3 // 4]
    if held_out:
        kept = len(asked) - max(1, round(held_out * len(asked)))
        asked, dev = asked[:kept], asked[kept:]
    facts = [(rng.choice(FACTS).format(name=name, colour=COLOURS[label]), label) for name, label in owners]
    train = facts + _questions(asked, rng)
    rng.shuffle(train)
    return tuple(train), tuple(_questions(dev, rng))


def _questions(owners: Sequence[tuple[str, int]], rng: random.Random) -> list[Row]:
    return [(rng.choice(QUESTIONS).format(name=name), label) for name, label in owners]


def _names() -> list[str]:
    """Two syllables each, in one order."""
    syllables = ["".join(parts) for parts in product(ONSETS, VOWELS, CODAS)]
    return ["".join(pair) for pair in product(syllables, syllables)]
