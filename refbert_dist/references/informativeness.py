"""What the labels of references tell of the inputs' labels, for train and held-out rows side by side.

Read before anything is trained: a student learns from train rows how far to trust its references, so that held-out rows
must find references that deserve as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refbert_dist.data.phrases import WORD
from refbert_dist.data.tasks import TaskSpec
from refbert_dist.references.guards import TextPair
from refbert_dist.references.neighbour_vote import neighbour_vote
from refbert_dist.references.statistics import label_agreement

MISMATCH = 0.03
"""From which gap between train and held-out rows on it is reported: a share, of a score's whole range."""
Row = tuple[str, float | None, float | None, float | None]
"""Of a table: a name, and what holds for train rows, held-out rows and random pairs; None where it is not known."""
LENGTHS = (1, 3, 6, 10, 15, 21, 31, 51)
"""The fewest words of each class of lengths, the same for all tasks."""


def word_counts(texts: Sequence[TextPair]) -> np.ndarray:
    """Words of each text, of both sentences of a pair, int64 ``[N]``."""
    return np.array([sum(len(WORD.findall(part)) for part in text if part) for text in texts], np.int64)


def informativeness(
    ids: np.ndarray, texts: Sequence[TextPair], labels: np.ndarray, pool_labels: np.ndarray, spec: TaskSpec
) -> dict[str, Any]:
    """Agreement of the nearest neighbour, by the query's length, too, and the vote of all neighbours.

    Args:
        ids: pool rows int64 ``[N, k]``, best first, -1 where there is none.
        texts: the queries.
        labels: theirs, float32 ``[N]``.
        pool_labels: float32 ``[P]``.
        spec: of the task.
    """
    first = ids[:, 0]
    some = first >= 0
    alike = _alike(labels[some], pool_labels[first[some]], spec)
    places = np.searchsorted(LENGTHS, np.maximum(1, word_counts(texts)), side="right") - 1
    classes = [(place, alike[places[some] == place]) for place in np.unique(places[some]).tolist()]
    votes = neighbour_vote(ids, pool_labels, spec.num_labels)
    return {
        **label_agreement(first, labels, pool_labels, spec.is_regression),
        "rows": len(alike),
        "standard_error": float(alike.std() / np.sqrt(max(1, len(alike)))) if len(alike) else None,
        "by_length": [
            {"min_words": LENGTHS[place], "rows": len(found), "nearest": float(found.mean())}
            for place, found in classes
        ],
        "vote": {
            "k": ids.shape[1],
            "measure": "correlation" if spec.is_regression else "accuracy",
            "score": _correlation(votes[:, 0], labels)
            if spec.is_regression
            else float((votes.argmax(axis=1) == labels).mean()),
        },
    }


def mismatch(
    train: Mapping[str, Any], held_out: Mapping[str, Any], spec: TaskSpec, apart: bool
) -> dict[str, Any] | None:
    """By how much references tell more of train rows than of held-out ones; None up to ``MISMATCH``.

    ``at_held_out_lengths`` is what train rows would have if they were as long as held-out ones: where that is no more
    than these have, their lengths alone are the cause.

    Args:
        train: what :func:`informativeness` says of train rows.
        held_out: and of held-out rows.
        spec: of the task.
        apart: whether rows that are phrases of one sentence are kept apart already.
    """
    if train["nearest"] is None or held_out["nearest"] is None:
        return None
    sign = -1 if spec.is_regression else 1
    allowed = MISMATCH * (spec.label_range[1] - spec.label_range[0] if spec.is_regression else 1)
    gap = sign * (train["nearest"] - held_out["nearest"])
    if gap <= allowed:
        return None
    # Older tables of neighbours know of no lengths.
    lengths = train.get("by_length", ())
    adjusted = _at_lengths(lengths, held_out["by_length"])
    found = {
        "measure": train["measure"],
        "train": train["nearest"],
        "held_out": held_out["nearest"],
        "standard_error": held_out["standard_error"],
        "at_held_out_lengths": adjusted,
        "gap": gap,
    }
    by_length = adjusted is not None and sign * (adjusted - held_out["nearest"]) <= allowed
    if by_length:
        advice = _fewest_words(lengths, held_out["nearest"], allowed, sign)
    elif not apart and not spec.is_pair:
        advice = "if rows are phrases of one sentence, task.phrases=true keeps them apart"
    else:
        advice = "another references.retriever may find alike for both"
    return found | {"message": _sentence(found, advice)}


def label_rows(train: Mapping[str, Any] | None, held_out: Mapping[str, Any] | None) -> list[Row]:
    """What :func:`informativeness` says of both parts, as rows of a table: name, train, held-out, random pairs.

    Older tables of neighbours know of the nearest one only.
    """
    parts = [train or {}, held_out or {}]
    random = next((part["random"] for part in parts[::-1] if part), None)
    rows: list[Row] = [("nearest", parts[0].get("nearest"), parts[1].get("nearest"), random)]
    lengths = [{item["min_words"]: item for item in part.get("by_length", ())} for part in parts]
    for place, fewest in enumerate(LENGTHS):
        if any(fewest in part for part in lengths):
            most = f" to {LENGTHS[place + 1] - 1}" if place + 1 < len(LENGTHS) else " or more"
            known = [part.get(fewest, {}).get("nearest") for part in lengths]
            rows.append((f"{fewest}{most} words", known[0], known[1], None))
    votes = [part["vote"] for part in parts if "vote" in part]
    if votes:
        scores = [part.get("vote", {}).get("score") for part in parts]
        rows.append((f"vote of {votes[0]['k']}, {votes[0]['measure']}", scores[0], scores[1], None))
    return rows


def _sentence(found: Mapping[str, Any], advice: str) -> str:
    adjusted = found["at_held_out_lengths"]
    at_lengths = "" if adjusted is None else f", and {adjusted:.3f} for train rows as long as these"
    return (
        "references tell more of train than of held-out rows, so that students will trust them too much "
        f"({found['measure']} with the nearest: {found['train']:.3f} for train, {found['held_out']:.3f} with a "
        f"standard error of {found['standard_error']:.3f} for held-out{at_lengths}); {advice}"
    )


def _at_lengths(train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> float | None:
    """Train's mean with held-out's numbers of rows of each length, over the lengths that both have."""
    known = {item["min_words"]: item["nearest"] for item in train}
    both = [(known[item["min_words"]], item["rows"]) for item in held_out if item["min_words"] in known]
    if not both:
        return None
    values, rows = zip(*both, strict=True)
    return float(np.average(values, weights=rows))


def _fewest_words(by_length: Sequence[Mapping[str, Any]], wanted: float, allowed: float, sign: int) -> str:
    """The length from which on train rows are like held-out ones, as the setting that leaves out the others."""
    for start in range(1, len(by_length)):
        rest = by_length[start:]
        mean = float(np.average([item["nearest"] for item in rest], weights=[item["rows"] for item in rest]))
        if sign * (mean - wanted) <= allowed:
            words = rest[0]["min_words"]
            return f"their lengths are the cause, and task.min_words={words} would leave out what is too short"
    return "their lengths are the cause, and a larger task.min_words would leave out what is too short"


def _alike(labels: np.ndarray, others: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Whether labels are equal, or how far scores are apart, float64 ``[N]``."""
    found: np.ndarray = np.abs(labels - others) if spec.is_regression else labels == others
    return found.astype(np.float64)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
