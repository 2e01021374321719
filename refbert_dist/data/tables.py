"""Small Parquet tables beside token shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refbert_dist.artifacts.disk import Write


def save_table(columns: Mapping[str, Sequence[object]], kinds: Mapping[str, str]) -> Write:
    """A writer of a Parquet file; ``kinds`` gives the Arrow type of each column (``string``, ``int64``).

    Written by pyarrow itself: ``datasets`` makes the same file at twice the cost.
    """

    def write(path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        arrays = {name: pyarrow.array(columns[name], pyarrow.type_for_alias(kind)) for name, kind in kinds.items()}
        # Texts hardly recur, so that a dictionary of them would only cost time.
        parquet.write_table(pyarrow.table(arrays), path, compression="zstd", use_dictionary=False)

    return write


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a Parquet file. Read directly: ``datasets`` would first copy the file into its own cache."""
    import pyarrow.parquet as parquet

    columns: dict[str, list[Any]] = parquet.ParquetFile(path).read().to_pydict()
    return columns
