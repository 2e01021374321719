"""Charts of ``diagnostics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refbert_dist.diagnostics.tables import system_name
from refbert_dist.report.charts import Series, chart


def diagnostic_charts(found: Mapping[str, Any]) -> list[str]:
    """Attention of every head on references, and scores against similarity."""
    heads = [
        Series(
            f"{system_name(row['system'])}, reference has {row['neighbour']}",
            list(enumerate(row["heads"], start=1)),
            mode="lines+markers",
            hover=f"{row['rows']:,} rows",
        )
        for row in found["attention"]
    ]
    classes = found["by_similarity"]
    systems = list(classes[0]["systems"]) if classes else []
    scores = [
        Series(
            system_name(system),
            [((row["from"] + row["to"]) / 2, row["systems"][system]["mean"]) for row in classes],
            mode="lines+markers",
            hover=[_hover(row, system) for row in classes],
        )
        for system in systems
    ]
    return [
        *([chart("Attention of the first layer on references", heads, "head", "share")] if heads else []),
        *(
            [chart(f"{found['measure']} by similarity", scores, "words in common with the nearest", found["measure"])]
            if scores
            else []
        ),
    ]


def _hover(row: Mapping[str, Any], system: str) -> str:
    value = row["systems"][system]
    error = "" if value["standard_error"] is None else f" ± {value['standard_error']:.3f}"
    span = f"similarity {row['from']:.2f} to {row['to']:.2f}"
    return f"{system_name(system)}: {value['mean']:.3f}{error}\n{row['rows']:,} rows, {span}"
