"""What was measured, for people: Markdown for a terminal or a file, and a page with charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refbert_dist.report.charts import bars
from refbert_dist.report.page import Section, charts, note, page, table

Rows = list[list[str]]
KINDS = {
    "network": ("Network alone", "A forward pass; what it takes is ready, references are projected."),
    "end_to_end": (
        "From text to answer",
        "The teacher and TinyBERT: tokenise, predict. RefBERT: tokenise, look up among {pool:,} texts, load, predict.",
    ),
}
STEPS = ("tokenise", "look up", "load", "predict")


def markdown(found: Mapping[str, Any]) -> str:
    """All tables, and what they say."""
    parts = [f"# {_title(found)}\n\n{_conditions(found)}"]
    for heading, words, headings, rows in _tables(found):
        lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        parts.append(f"## {heading}\n\n{words}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def html(found: Mapping[str, Any]) -> str:
    """The same as one self-contained page."""
    plots = Section("Times faster", charts([_chart(found, kind) for kind in KINDS]))
    sections = [
        Section(heading, note(words) + table(headings, rows)) for heading, words, headings, rows in _tables(found)
    ]
    return page(_title(found), _conditions(found), [plots, *sections])


def _title(found: Mapping[str, Any]) -> str:
    return f"Speed and size beside {found['texts']['teacher']}"


def _conditions(found: Mapping[str, Any]) -> str:
    machine, settings = found["machine"], found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return (
        f"{machine['device']}, {machine['threads']} threads; {versions}. Random weights. Systems take turns, "
        f"{settings['rounds']} rounds; times are the median and, in brackets, the 95th percentile of a batch; x is how "
        f"many times as fast as the teacher's shape by transformers ({settings['ways'][0]}), the median of the rounds. "
        f"A reference has {found['texts']['reference_length']} tokens."
    )


def _tables(found: Mapping[str, Any]) -> Iterable[tuple[str, str, list[str], Rows]]:
    yield _sizes(found["sizes"])
    for kind, (heading, words) in KINDS.items():
        rows = found[kind]
        for way in found["settings"]["ways"]:
            mine = [row for row in rows if row["way"] == way]
            systems = list(dict.fromkeys(row["system"] for row in mine))
            yield (
                f"{heading}, {way}",
                words.format(pool=found["texts"]["pool"]),
                ["texts x tokens", *systems],
                [
                    [f"{batch} x {length}", *(_cell(row) for row in mine if (row["batch"], row["length"]) == at)]
                    for at in dict.fromkeys((row["batch"], row["length"]) for row in mine)
                    for batch, length in [at]
                ],
            )
    if found["steps"]:
        yield (
            "Where RefBERT's time goes",
            "Milliseconds for each text, step by step.",
            ["texts x tokens", "k", *STEPS],
            [
                [
                    f"{row['batch']} x {row['length']}",
                    str(row["references"]),
                    *(f"{row[step] / row['batch']:.3f}" for step in STEPS),
                ]
                for row in found["steps"]
            ],
        )
    if found["task"]:
        yield _task(found)


def _sizes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[str], Rows]:
    first = rows[0]
    at = str(first["peak_length"])
    has_graphs = "onnx-int8_bytes" in first
    headings = ["system", "parameters", "", "weights", *(["int8"] if has_graphs else []), "GFLOP a text", "", "memory"]
    cells = [
        [
            row["system"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{first['parameters'] / row['parameters']:.2f}x smaller",
            f"{row['bytes'] / 1e6:.1f} MB",
            *([f"{row['onnx-int8_bytes'] / 1e6:.1f} MB"] if has_graphs else []),
            f"{row['gflop'][at]:.3f}",
            f"{first['gflop'][at] / row['gflop'][at]:.1f}x fewer",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        ]
        for row in rows
    ]
    words = (
        f"Operations of {at} tokens, counted as they are computed. Memory: the peak of loading the model and one pass "
        f"of {first['peak_batch']} x {at} tokens, beyond the libraries."
    )
    return "Size", words, headings, cells


def _task(found: Mapping[str, Any]) -> tuple[str, str, list[str], Rows]:
    task, texts = found["task"], found["texts"]
    words = (
        f"{task['texts']} dev rows of {texts['task']} in batches of {task['batch']}, from text to answer, "
        f"{task['references']} reference(s) out of {texts['task_pool']:,}. Padded: all to {task['padded_length']} "
        "tokens, references to their limit. Else the teacher pads to the longest of a batch, in the rows' order, and "
        "RefBERT sorts by length first."
    )
    cells = [
        [
            name,
            f"{row['texts_s']:,.1f}",
            f"{row['faster']['median']:.1f}x",
            f"{row['faster_than_padded']['median']:.2f}x",
        ]
        for name, row in task["systems"].items()
    ]
    return "At the task's own lengths", words, ["system", "texts/s", "faster", "than its own padded"], cells


def _cell(row: Mapping[str, Any]) -> str:
    return f"{_ms(row['p50_ms'])} ({_ms(row['p95_ms'])}) ms {row['faster']['median']:.1f}x"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _chart(found: Mapping[str, Any], kind: str) -> str:
    """Every system by every way, at the largest batch and the length in the middle."""
    rows, heading = found[kind], KINDS[kind][0]
    batch, length = max(row["batch"] for row in rows), found["sizes"][0]["peak_length"]
    values = {
        f"{row['system']}, {row['way']}": row["faster"]["median"]
        for row in rows
        if (row["batch"], row["length"]) == (batch, length)
    }
    return bars(f"{heading}, {batch} x {length}", values, "times as fast as the teacher's shape")
