"""Tables for people, made from ``results.json`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from refbert_dist.artifacts import read_json
from refbert_dist.config import Experiment


def show_results(exp: Experiment, console: Console) -> None:
    """The systems of a finished run side by side; narrow enough for a terminal of 80 columns."""
    rows: list[dict[str, Any]] = read_json(exp.run.dir / "results.json")
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
    for system in ("teacher", "tinybert", "refbert"):
        mine = {row["metric"]: row for row in rows if row["system"] == system}
        if not mine:
            continue
        row = mine[metrics[0]]
        names = {"teacher": "teacher", "tinybert": "TinyBERT", "refbert": f"RefBERT k={row['references']}"}
        table.add_row(
            names[system],
            f"{row['params'] / 1e6:.2f} M",
            f"{row['size_ratio']:.2f}x",
            f"{row['latency_ms']:.1f}",
            f"{row['latency_ratio']:.2f}x",
            *(f"{mine[metric]['score']:.4f}" for metric in metrics),
            f"{row['steps']:,}",
        )
    console.print(table)
    if len(exp.trained_systems()) > 1:
        console.print("TinyBERT is the same student without references: same steps, batches, rates and start.")


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
