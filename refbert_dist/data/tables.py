"""Small Parquet tables beside token shards and in reference banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refbert_dist.artifacts.shards import Write


def save_table(columns: Mapping[str, Sequence[object]], kinds: Mapping[str, str]) -> Write:
    """A writer of a Parquet file; ``kinds`` gives the ``datasets`` type of each column (``string``, ``int64``)."""

    def write(path: Path) -> None:
        import datasets

        features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
        table = datasets.Dataset.from_dict({name: list(columns[name]) for name in kinds}, features=features)
        # A bar for every shard would bury the one progress line of the stage.
        noisy = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            table.to_parquet(str(path))
        finally:
            if noisy:
                datasets.enable_progress_bars()

    return write


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a Parquet file. Read directly: ``datasets`` would first copy the file into its own cache."""
    import pyarrow.parquet as parquet

    columns: dict[str, list[Any]] = parquet.ParquetFile(path).read().to_pydict()
    return columns
