"""What the systems of an experiment read as references: the neighbours that were looked up, or a control's substitute.

A source gives keyword arguments for the student's forward; every one is a function of the sample's number alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from refbert_dist.data.batching import pad_tokens
from refbert_dist.data.tokens import TokenSet

Given = dict[str, torch.Tensor]
"""``reference_keys``, ``reference_values`` and ``reference_mask``, or what :func:`encoded_by` makes them from."""

IDS, TYPES, MASK = "reference_input_ids", "reference_token_type_ids", "reference_mask"


class Source(Protocol):
    """References of a token set's samples."""

    def of(self, samples: np.ndarray) -> Given:
        """Of these samples."""


class States(Protocol):
    """Whatever turns pool rows into states."""

    def gather(self, neighbours: np.ndarray) -> Given:
        """See :meth:`refbert_dist.references.states.ReferenceStates.gather`."""


class Neighbours:
    """States of the pool rows that each sample was given."""

    def __init__(self, rows: np.ndarray, states: States) -> None:
        """``rows`` int64 ``[N, K]``, -1 where there is none."""
        self.rows = rows
        self.states = states

    def of(self, samples: np.ndarray) -> Given:
        """See :class:`Source`."""
        return self.states.gather(self.rows[samples])


class Zeros:
    """Zeros where another source has states."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def of(self, samples: np.ndarray) -> Given:
        """See :class:`Source`."""
        given = self.source.of(samples)
        return {name: tensor if name == MASK else torch.zeros_like(tensor) for name, tensor in given.items()}


class Noise:
    """Random numbers where another source has states, the same for all samples.

    They are drawn from a normal distribution once for each place of a token in each reference, for keys and values.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self.seed = seed

    def of(self, samples: np.ndarray) -> Given:
        """See :class:`Source`."""
        given = self.source.of(samples)
        return {
            name: tensor if name == MASK else self._drawn(number, tensor)
            for number, (name, tensor) in enumerate(given.items())
        }

    def _drawn(self, number: int, states: torch.Tensor) -> torch.Tensor:
        _, references, tokens, width = states.shape
        drawn = [
            # A generator for each reference: what it gets must not depend on how long the longest of a batch is.
            torch.from_numpy(np.random.default_rng([self.seed, number, place]).standard_normal((tokens, width)))
            for place in range(references)
        ]
        return torch.stack(drawn).to(states).expand_as(states)


class Unread:
    """Token ids of the neighbours, for a student that makes states of them itself."""

    def __init__(self, rows: np.ndarray, pool: TokenSet, max_length: int, pad_id: int, device: torch.device) -> None:
        self.rows = rows
        self.pool = pool
        self.max_length = max_length
        self.pad_id = pad_id
        self.device = device

    def of(self, samples: np.ndarray) -> Given:
        """``reference_input_ids``, ``reference_token_type_ids`` and ``reference_mask``, each ``[B, K, R]``."""
        neighbours = self.rows[samples]
        flat = neighbours.reshape(-1)
        rows = np.where(flat < 0, 0, flat).tolist()
        batch = pad_tokens(
            [self.pool.ids(row)[: self.max_length] for row in rows],
            [self.pool.types(row)[: self.max_length] for row in rows],
            self.pad_id,
        )
        mask = batch["attention_mask"].astype(bool) & (flat >= 0)[:, None]
        arrays = {IDS: batch["input_ids"], TYPES: batch["token_type_ids"], MASK: mask}
        return {
            name: torch.from_numpy(array).reshape(*neighbours.shape, -1).to(self.device)
            for name, array in arrays.items()
        }


@torch.no_grad()
def encoded_by(student: Any, given: Given) -> Given:
    """``given`` as the first layer reads it: where it holds token ids, the student's own states of them.

    The student reads them without references; its embedding output gives keys, its last layer values, as the teacher's
    would. No gradient flows back into them: they are to be what could be stored.
    """
    if IDS not in given:
        return given
    ids, types, mask = given[IDS].flatten(0, 1), given[TYPES].flatten(0, 1), given[MASK]
    # A missing reference must attend to something, or its states would be NaN; the mask hides what comes of it.
    attended = mask.flatten(0, 1).long()
    attended[:, 0] = 1
    states = student.base_model(
        input_ids=ids, token_type_ids=types, attention_mask=attended, output_hidden_states=True
    ).hidden_states
    shape = (*mask.shape, -1)
    return {"reference_keys": states[0].view(shape), "reference_values": states[-1].view(shape), MASK: mask}


def drawn_rows(table: np.ndarray, own: np.ndarray, documents: np.ndarray, allowed: np.ndarray, seed: int) -> np.ndarray:
    """Rows drawn from the pool in the place of neighbours: never the sample itself, or another row of its document.

    Args:
        table: neighbours int64 ``[N, K]``; what is missing there is missing in the result.
        own: document of each sample by the pool's numbers, int64 ``[N]``; -1 where it is none of the pool's.
        documents: document of each row, int64 ``[P]``.
        allowed: the rows that may be read, int64.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    rows = allowed[generator.integers(len(allowed), size=table.shape)]
    for _ in range(100):
        wrong = documents[rows] == own[:, None]
        if not wrong.any():
            break
        rows[wrong] = allowed[generator.integers(len(allowed), size=int(wrong.sum()))]
    rows[(table < 0) | (documents[rows] == own[:, None])] = -1
    return rows


def same_rows(table: np.ndarray, own: np.ndarray, documents: np.ndarray, allowed: np.ndarray, seed: int) -> np.ndarray:
    """The same rows for every sample, drawn from the pool as far as it has them; see :func:`drawn_rows`."""
    drawn = np.random.default_rng(seed).permutation(allowed)[: table.shape[1]]
    rows = np.full((1, table.shape[1]), -1)
    rows[0, : len(drawn)] = drawn
    return np.where((table < 0) | (documents[rows] == own[:, None]), -1, rows)


def dealt_rows(table: np.ndarray, own: np.ndarray, documents: np.ndarray, seed: int) -> np.ndarray:
    """Every sample gets the list of neighbours of another one; see :func:`drawn_rows` for the arguments.

    A list that holds the sample itself, or a row of its document, is exchanged for a random other one.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(table))

    def wrong() -> np.ndarray:
        rows = table[order]
        same = (documents[rows] == own[:, None]) & (rows >= 0)
        found: np.ndarray = same.any(axis=1) | (order == np.arange(len(table)))
        return found

    for _ in range(100):
        again = wrong()
        if not again.any():
            break
        order[again] = generator.integers(len(table), size=int(again.sum()))
    rows = table[order]
    return np.where(((documents[rows] == own[:, None]) & (rows >= 0)), -1, rows)
