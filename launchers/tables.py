"""Tables for people, made from ``results.json`` and manifests alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from refbert_dist.artifacts import read_json
from refbert_dist.config import SYSTEM_LABELS, Experiment, system_label
from refbert_dist.errors import UserError
from refbert_dist.references.informativeness import label_rows


def show_results(exp: Experiment, console: Console) -> None:
    """The systems of a finished run side by side; narrow enough for a terminal of 80 columns."""
    path = exp.run.dir / "results.json"
    if not path.exists():
        raise UserError(f"{path} is gone, from which the scores are shown; refbert evaluate makes it again")
    rows: list[dict[str, Any]] = read_json(path)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = rows[0]
    table = Table(
        title=f"{first['task']} dev, {first['n']} rows, seed {first['seed']}; "
        f"ms: one forward pass of {first['latency_batch']} x {first['latency_length']} tokens",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("system")
    for heading in ("params", "smaller", "ms", "faster", *metrics, "steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for system in SYSTEM_LABELS:
        mine = {row["metric"]: row for row in rows if row["system"] == system}
        if not mine:
            continue
        row = mine[metrics[0]]
        table.add_row(
            system_label(system, row["references"], row.get("memory", 0)),
            f"{row['params'] / 1e6:.2f} M" if row["params"] else "",
            f"{row['size_ratio']:.2f}x" if row["size_ratio"] else "",
            "" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}",
            "" if row["latency_ratio"] is None else f"{row['latency_ratio']:.2f}x",
            *(f"{mine[metric]['score']:.4f}" for metric in metrics),
            f"{row['steps']:,}",
        )
    console.print(table)
    if any(row.get("kept") == "best" for row in rows):
        console.print("Students are kept at the step that scored best on dev, so their scores on dev were chosen.")
    if len(exp.trained_systems()) > 1:
        console.print("All students have the same steps, batches, rates and start; TinyBERT reads no references.")


def show_submitted(run_dir: Path, found: Mapping[str, Any], console: Console) -> None:
    """The files of a submission, as the stage has reported them, and what the test server would miss."""
    rows = ", ".join(f"{name} ({count:,} rows)" for name, count in found["rows"].items())
    lines = [f"submission {run_dir / 'submission' / 'submission.zip'}: {rows}, answered by {found['system']}"]
    lines += [f"{name} has another number of rows than GLUE's test file" for name in found["other_size"]]
    lines.append(f"missing for a whole submission: {', '.join(found['missing'])}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_neighbours(manifests: Iterable[Mapping[str, Any]], console: Console) -> None:
    """How informative references are, and what the guards refused: one row for each manifest of neighbours.

    Train and held-out (dev) rows should look the same; where the nearest is like a random pair, there is nothing in it.
    """
    found = list(manifests)
    table = Table(
        title="nearest allowed reference: words in common (Jaccard), beside random pairs",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("retriever", "part"):
        table.add_column(heading, no_wrap=True)
    for heading in ("samples", "all k %", "words", "random"):
        table.add_column(heading, justify="right", no_wrap=True)
    for manifest in found:
        table.add_row(
            _retriever(manifest["recipe"]),
            manifest["part"],
            f"{manifest['samples']:,}",
            f"{100 * manifest['share_with_all']:.1f}",
            *(f"{manifest[name]:.3f}" for name in ("mean_first_overlap", "mean_random_overlap")),
        )
    console.print(table)
    _show_labels(found, console)
    for manifest in found:
        refused = ", ".join(f"{name} {count:,}" for name, count in manifest["refused"].items() if count) or "nothing"
        console.print(
            f"{_retriever(manifest['recipe'])} {manifest['part']}: k={manifest['count']}, "
            f"{100 * manifest['share_with_any']:.1f} % have a reference, refused {refused}",
            highlight=False,
            soft_wrap=True,
        )
    for manifest in found:
        if manifest.get("mismatch"):
            words = f"mismatch, {_retriever(manifest['recipe'])}: {manifest['mismatch']['message']}"
            console.print(words, highlight=False, soft_wrap=True, markup=False)


def _show_labels(manifests: Iterable[Mapping[str, Any]], console: Console) -> None:
    """What the labels of references tell: train and held-out rows side by side, and random pairs."""
    told: dict[str, dict[str, Mapping[str, Any]]] = {}
    held_out = "dev"
    for manifest in manifests:
        if manifest["label_agreement"]:
            told.setdefault(_retriever(manifest["recipe"]), {})[manifest["part"]] = manifest["label_agreement"]
            held_out = "held-out" if manifest.get("held_out") else held_out
    if not told:
        return
    measure = next(iter(next(iter(told.values())).values()))["measure"]
    title = f"labels: {measure} with the nearest reference, by words of the input; the vote of all k"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("retriever", "of"):
        table.add_column(heading, no_wrap=True)
    for heading in ("train", held_out, "random"):
        table.add_column(heading, justify="right", no_wrap=True)
    for retriever, parts in told.items():
        for number, (name, *values) in enumerate(label_rows(parts.get("train"), parts.get("dev"))):
            table.add_row("" if number else retriever, name, *map(_figure, values))
    console.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _retriever(recipe: Mapping[str, Any]) -> str:
    if recipe["retriever"] != "dense":
        return f"{recipe['retriever']}{', all words' if recipe.get('stop_words') == 'none' else ''}"
    return f"dense({recipe['layer']})" + ("" if recipe["index"] == "flat" else f" {recipe['index']}")


def show_paths(exp: Experiment, console: Console) -> None:
    """What a run has left, and what to do with it."""
    run_dir: Path = exp.run.dir
    made = {
        "results": run_dir / "results.json",
        "metrics": run_dir / "metrics.jsonl",
        "model": run_dir / "export",
        "cache": exp.cache.dir,
    }
    for name, path in made.items():
        if path.exists():
            console.print(f"{name:8} {path}", highlight=False, soft_wrap=True)
    if (run_dir / "results.json").exists():
        console.print(f"try it   printf 'a text\\tanother\\n' | refbert predict {run_dir}/export", highlight=False)


def show_benchmark(exp: Experiment) -> None:
    """The tables of a benchmark, and where they lie."""
    folder = exp.run.dir / "benchmark"
    typer.echo((folder / "benchmark.md").read_text(encoding="utf-8"))
    typer.echo(f"{folder}/benchmark.md  benchmark.html  benchmark.json")
