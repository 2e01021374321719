"""The tables of ``diagnostics.json`` for people, in a terminal or on the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refbert_dist.config import SYSTEM_LABELS


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def sheets(found: Mapping[str, Any]) -> list[Sheet]:
    """All tables of what :func:`refbert_dist.diagnostics.run.diagnose` has written."""
    by_label = {row["neighbour"]: row for row in found["by_label"]}
    by_similarity = {
        f"{row['from']:.2f} to {row['to']:.2f} ({100 * row['same_label']:.0f} %)": row for row in found["by_similarity"]
    }
    return [
        _information(found["information"], found["rows"]),
        *([_attention(found["attention"])] if found["attention"] else []),
        _scores(
            f"{found['measure']} where the nearest reference has",
            by_label,
            "A gain only where it has the input's label is read off that label.",
        ),
        _scores(
            f"{found['measure']} by the share of words in common with the nearest reference",
            by_similarity,
            "Rows that have one, in classes of about as many; in brackets, how many have the input's label.",
        ),
        # Not in what older versions have written.
        *([_mixed(found["mixed"])] if found.get("mixed") else []),
    ]


def system_name(system: str) -> str:
    """A system for people."""
    return SYSTEM_LABELS[system].replace("{references} ", "").partition(" k=")[0]


def _information(rows: Sequence[Mapping[str, Any]], count: int) -> Sheet:
    lines = []
    for row in rows:
        spread = f"{row['info_nce_lowest']:.2f} to {row['info_nce_highest']:.2f}"
        near = f"{row['nearest_neighbours']:.2f}"
        lines.append([system_name(row["system"]), row["beside"], f"{row['info_nce']:.2f}", spread, near])
    limit = rows[0]["limit"] if rows else 0.0
    return Sheet(
        "information on the teacher's states, nats",
        ["student", "beside its states", "InfoNCE", "of 3 critics", "KSG"],
        lines,
        f"On {count:,} held-out rows. InfoNCE is a lower bound that cannot exceed {limit:.2f}; KSG sees two principal "
        "components of each. What counts is by how much the references exceed the controls; the input's own states are "
        "the upper end.",
    )


def _attention(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    lines = [
        [
            system_name(row["system"]),
            row["neighbour"],
            f"{row['rows']:,}",
            _with_error(row),
            f"{row['if_even']:.3f}",
            " ".join(f"{share:.2f}" for share in row["heads"]),
        ]
        for row in rows
    ]
    return Sheet(
        "share of the first layer's attention on references",
        ["student", "nearest has", "rows", "attention", "if even", "heads"],
        lines,
        "If even: what it would be if every token that can be attended to got as much.",
    )


def _mixed(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    lines = [
        [system_name(row["system"]), *(f"{score:.3f}" for score in (*row["scores"], row["chosen"]))] for row in rows
    ]
    first = rows[0]
    return Sheet(
        f"{first['metric']} when a share of each answer is the vote of the references' labels",
        ["student", *(f"{share:g}" for share in first["shares"]), "chosen"],
        lines,
        "Without any training. Chosen: each half of the rows with the share that is best on the other half. The best "
        "of the other columns is too good, being the best of several.",
    )


def _scores(title: str, classes: Mapping[str, Mapping[str, Any]], note: str) -> Sheet:
    """Systems below each other, classes of rows side by side."""
    values = list(classes.values())
    systems = [name for name in SYSTEM_LABELS if values and name in values[0]["systems"]]
    beside = [name for name in systems if name in values[0]["beside_tinybert"]]
    lines = [
        ["rows", *(f"{row['rows']:,}" for row in values)],
        *([system_name(name), *(_with_error(row["systems"][name]) for row in values)] for name in systems),
        *(
            [f"{system_name(name)} - TinyBERT", *(_with_error(row["beside_tinybert"][name]) for row in values)]
            for name in beside
        ),
    ]
    return Sheet(title, ["", *classes], lines, f"Means and their standard errors, on the same rows. {note}")


def _with_error(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return "-"
    error = "" if value["standard_error"] is None else f" ±{value['standard_error']:.3f}"
    return f"{value['mean']:.3f}{error}"
