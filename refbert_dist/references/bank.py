"""The references that a model carries with it: texts, their index, and keys and values projected once and for all.

Layout of the folder::

    bank.json            format version, counts, and size and hash of every other file; written last
    index/               the retriever's own files
    texts.parquet        text_a, text_b, document
    states.safetensors   keys, values float16 [T, H], offsets int64 [N + 1]; not padded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refbert_dist.artifacts import hash_file, map_tensors, read_json, save_tensors, write_json
from refbert_dist.artifacts.disk import explain_disk_errors
from refbert_dist.data.tables import read_table, save_table
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.dense import Dense
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import Retriever
from refbert_dist.references.retriever_choice import encode_texts, load_retriever
from refbert_dist.references.search import GuardedSearch, Queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 2
DESCRIPTION = "bank.json"
INDEX = "index"
TEXTS = "texts.parquet"
STATES = "states.safetensors"


class ReferenceBank:
    """A pool of known texts that can be searched and read; numbered as the rows it was written from."""

    def __init__(
        self,
        search: GuardedSearch,
        encode: Callable[[Sequence[TextPair]], Sequence[Any]],
        states: dict[str, np.ndarray],
        description: dict[str, Any],
    ) -> None:
        self._search = search
        self._encode = encode
        self._keys, self._values = states["keys"], states["values"]
        self._offsets = states["offsets"]
        self.count: int = description["count"]
        """References of each input (k)."""
        self.max_length: int = description["max_length"]
        """Tokens of the longest reference."""

    @classmethod
    def write(
        cls,
        folder: str | Path,
        texts: Sequence[TextPair],
        documents: np.ndarray,
        keys: Iterable[np.ndarray],
        values: Iterable[np.ndarray],
        *,
        count: int,
        retriever: Retriever,
        left_out: Iterable[int],
    ) -> None:
        """Write a bank of N rows.

        Args:
            folder: made if needed.
            texts: of every row.
            documents: document number or group of every row, int64 ``[N]``.
            keys: of every row, ``[L, H]`` in the first layer's key space.
            values: of every row, ``[L, H]`` in the first layer's value space.
            count: references that the model reads for each input.
            retriever: as in training, over these rows; a dense one must be by teacher layer 0.
            left_out: rows that no input may read; those of the training neighbours (``NeighbourTable.left_out``).

        Raises:
            RefusedError: a state does not fit float16.
        """
        if isinstance(retriever, Dense) and retriever.tokens is None:
            raise ValueError("a bank has no teacher to run texts through; see references.neighbours.check_exportable")
        folder = Path(folder)
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Without a description the folder is no bank: a rewrite that is interrupted must not pass for one.
            (folder / DESCRIPTION).unlink(missing_ok=True)
            arrays, offsets = _join_states(keys, values)
            if len(offsets) - 1 != len(texts) or len(documents) != len(texts):
                raise ValueError(
                    f"{len(texts)} texts, {len(documents)} documents, {len(offsets) - 1} states: give one of each a row"
                )
            save_tensors({**arrays, "offsets": offsets})(folder / STATES)
            columns: dict[str, list[Any]] = {
                "text_a": [first for first, _ in texts],
                "text_b": [second for _, second in texts],
                "document": documents.tolist(),
            }
            save_table(columns, {"text_a": "string", "text_b": "string", "document": "int64"})(folder / TEXTS)
            retriever.save(folder / INDEX)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            description = {
                "format_version": FORMAT_VERSION,
                "count": count,
                "retriever": retriever.kind,
                "rows": len(texts),
                "max_length": int(np.diff(offsets).max()),
                "left_out": sorted(left_out),
                "files": {
                    str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
                    for path in files
                },
            }
            write_json(folder / DESCRIPTION, description)

    @classmethod
    def open(cls, folder: str | Path, tokenizer: PreTrainedTokenizerFast | None = None) -> ReferenceBank:
        """Map a bank; every file is checked against its hash first.

        ``tokenizer`` is the model's own, with its ``model_max_length``: dense lookup goes by tokens.

        Raises:
            UserError: there is no bank, or a newer program wrote it.
            RefusedError: a file is missing or has another content.
        """
        folder = Path(folder)
        description = _read_description(folder)
        for name, item in description["files"].items():
            path = folder / name
            if not path.is_file():
                raise RefusedError(f"the reference bank {folder} lacks {name}; export the model again")
            if path.stat().st_size != item["bytes"] or hash_file(path) != item["xxh3"]:
                raise RefusedError(
                    f"the reference bank {folder} is damaged: {name} has changed; export the model again"
                )
        table = read_table(folder / TEXTS)
        texts: list[TextPair] = list(zip(table["text_a"], table["text_b"], strict=True))
        documents = np.array(table["document"], np.int64)
        retriever = load_retriever(description["retriever"], folder / INDEX)
        search = GuardedSearch(texts, documents, retriever, description["left_out"])
        encode = partial(encode_texts, retriever, tokenizer)
        return cls(search, encode, map_tensors(folder / STATES), description)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lookup(self, texts: Sequence[TextPair]) -> np.ndarray:
        """Rows of the nearest known texts, int64 ``[n, count]``, best first; -1 where there is none.

        Found and guarded as the neighbours of held-out rows were in training: a text never reads itself.
        """
        return self._search.find(Queries.of_strangers(texts, self._encode(texts)), self.count).ids

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projected states of rows ``ids [n, k]``.

        Returns keys and values float32 ``[n, k, R, H]`` and mask bool ``[n, k, R]``, true for real tokens; R is the
        longest of these references, at least 1. A row of -1 is masked whole.
        """
        flat = ids.reshape(-1).tolist()
        spans = [slice(0, 0) if row < 0 else slice(*self._offsets[row : row + 2].tolist()) for row in flat]
        lengths = np.array([span.stop - span.start for span in spans])
        longest = max(1, int(lengths.max(initial=0)))

        def padded(states: np.ndarray) -> np.ndarray:
            result = np.zeros((len(spans), longest, states.shape[1]), np.float32)
            for row, span in zip(result, spans, strict=True):
                row[: span.stop - span.start] = states[span]
            return result.reshape(*ids.shape, longest, states.shape[1])

        mask = np.arange(longest) < lengths[:, None]
        return padded(self._keys), padded(self._values), mask.reshape(*ids.shape, longest)


def _join_states(keys: Iterable[np.ndarray], values: Iterable[np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    joined_states: dict[str, np.ndarray] = {}
    lengths: list[list[int]] = []
    for name, rows in (("keys", keys), ("values", values)):
        with np.errstate(over="ignore"):
            halves = [np.asarray(row).astype(np.float16) for row in rows]
        lengths.append([len(row) for row in halves])
        joined_states[name] = np.concatenate(halves)
        if not np.isfinite(joined_states[name]).all():
            raise RefusedError(
                f"the {name} of the reference bank do not fit float16 (largest 65504); "
                "train with a smaller learning rate, or look for a diverged run"
            )
    if lengths[0] != lengths[1]:
        raise ValueError("keys and values have different lengths; give both for the same tokens")
    return joined_states, np.cumsum([0, *lengths[0]], dtype=np.int64)


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = read_json(folder / DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no reference bank ({DESCRIPTION} is missing); export the model again"
        ) from None
    except ValueError:
        raise RefusedError(
            f"the reference bank {folder} is damaged: {DESCRIPTION} is not JSON; export the model again"
        ) from None
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / DESCRIPTION} has format_version {version}, this program reads {FORMAT_VERSION}; "
            "use the program version that wrote it, or export the model again"
        )
    return description
