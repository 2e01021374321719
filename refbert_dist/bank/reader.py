"""The references that a model carries with it, opened for reading: text in, projected keys and values out.

Layout of the folder; names carry the number of the update that wrote them, so that readers of an older state go on::

    bank.json                     what it is, and size and hash of every other file; written last, sealed
    rows-0.safetensors            where each row's states lie, and their check sums
    texts-0.safetensors           the texts, or digests of them
    index-0/                      the retriever's own files
    states-0-0.safetensors, ...   projected keys and values, not padded
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from refbert_dist.artifacts import hash_file, map_tensors
from refbert_dist.artifacts.seals import read_sealed, sealed
from refbert_dist.bank.states import BankCodec, RowTable, Segment, StateRows
from refbert_dist.bank.texts import MappedTexts, digested
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import Retriever
from refbert_dist.references.retriever_choice import encode_texts, load_retriever
from refbert_dist.references.search import GuardedSearch, Queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 3
DESCRIPTION = "bank.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What ``bank.json`` says."""

    count: int
    """References that the model was trained to read for each input (k)."""
    width: int
    """The student's (H)."""
    max_length: int
    """Tokens of a reference that are kept at most."""
    codec: BankCodec
    retriever: str
    sentences: int
    """Of each text, 1 or 2."""
    texts: Literal["kept", "digests"]
    projections: str
    """Fingerprint of the weights that the states were projected with."""
    teacher: str
    """Fingerprint of the teacher whose states they are."""
    left_out: list[int]
    """Ids of rows that no input may read."""
    next_id: int
    """Of the next row that is added."""
    update: int
    """How often the bank was changed: the number in the names of files."""
    segments: list[str]
    """Names of the files with states, in the order of the row table's numbers."""
    files: dict[str, dict[str, Any]]
    """Size and hash of every file, by its path within the bank."""

    def sealed(self) -> dict[str, Any]:
        """As it is written."""
        return sealed({"format_version": FORMAT_VERSION, **asdict(self)})

    def verify(self, folder: Path, states: bool) -> None:
        """See :meth:`ReferenceBank.verify`."""
        for name, item in self.files.items():
            if (states or name not in self.segments) and hash_file(folder / name) != item["xxh3"]:
                raise _changed(folder, name)

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Raises as :meth:`ReferenceBank.open`."""
        path = folder / DESCRIPTION
        try:
            content = read_sealed(path, FORMAT_VERSION, "export the model again")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{folder} holds no reference bank ({DESCRIPTION} is missing); export the model again"
            ) from None
        except ValueError as error:
            raise RefusedError(
                f"the reference bank {folder} is damaged: {DESCRIPTION} has changed ({error}); export the model again"
            ) from None
        return cls(**{field.name: content[field.name] for field in fields(cls)})


class ReferenceBank:
    """Known texts that can be searched and read. Rows are numbered from 0; ids stay when other rows are removed."""

    def __init__(
        self, folder: Path, description: Description, tokenizer: PreTrainedTokenizerFast | None = None
    ) -> None:
        """Use :meth:`open`."""
        self.folder = folder
        self.description = description
        update = description.update
        table = RowTable(**map_tensors(folder / f"rows-{update}.safetensors"))
        self.texts: Sequence[TextPair] = MappedTexts(folder / f"texts-{update}.safetensors", description.sentences)
        """Of every row, read from disk when asked for; digests where the bank was written without texts."""
        segments: list[Segment] = [map_tensors(folder / name) for name in description.segments]
        self.states = StateRows(segments, table, description.codec, description.width, str(folder))
        """Projected keys and values of every row."""
        self.retriever: Retriever = load_retriever(description.retriever, folder / f"index-{update}")
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: str | Path, tokenizer: PreTrainedTokenizerFast | None = None) -> ReferenceBank:
        """Map a bank: milliseconds whatever its size, nothing is written, processes share its pages.

        Sizes are checked here and states as they are read; :meth:`verify` checks everything. ``tokenizer`` is the
        model's own, with its ``model_max_length``: dense lookup goes by tokens.

        Raises:
            UserError: there is no bank, or another version of this program wrote it.
            RefusedError: a file is missing or has another size.
        """
        folder = Path(folder)
        description = Description.read(folder)
        for name, item in description.files.items():
            path = folder / name
            if not path.is_file():
                raise RefusedError(f"the reference bank {folder} lacks {name}; export the model again")
            if path.stat().st_size != item["bytes"]:
                raise _changed(folder, name)
        try:
            return cls(folder, description, tokenizer)
        except (RefusedError, ValueError, TypeError, KeyError):
            description.verify(folder, states=True)  # says which file it is
            raise

    def verify(self, states: bool = True) -> None:
        """Hash every file, or all but the states; raises :class:`RefusedError` for one that has changed."""
        self.description.verify(self.folder, states)

    def __len__(self) -> int:
        return len(self.states.table)

    @property
    def ids(self) -> np.ndarray:
        """Of every row, int64 ``[N]``, ascending."""
        return self.states.table.ids

    @cached_property
    def _search(self) -> GuardedSearch:
        left_out = np.flatnonzero(np.isin(self.ids, self.description.left_out)).tolist()
        return GuardedSearch(self.texts, None, self.retriever, left_out)

    def lookup(self, texts: Sequence[TextPair], count: int | None = None) -> np.ndarray:
        """Rows of the ``count`` nearest known texts, int64 ``[n, count]``, best first; -1 where there is none.

        Found and guarded as the neighbours of held-out rows were in training: a text never reads itself.
        """
        encoded = encode_texts(self.retriever, self._tokenizer, texts)
        known = texts if self.description.texts == "kept" else [digested(text) for text in texts]
        queries = Queries.of_strangers(known, encoded)
        return self._search.find(queries, self.description.count if count is None else count).ids

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projected states of ``rows [n, k]``.

        Returns keys and values float32 ``[n, k, R, H]`` and mask bool ``[n, k, R]``, true for real tokens; R is the
        longest of these references, at least 1. A row of -1 is masked whole. Raises :class:`RefusedError` when a byte
        of a row has changed.
        """
        keys, values, mask = self.states.gather(rows.reshape(-1))
        return (
            keys.reshape(*rows.shape, *keys.shape[1:]),
            values.reshape(*rows.shape, *values.shape[1:]),
            mask.reshape(*rows.shape, -1),
        )


def _changed(folder: Path, name: str) -> RefusedError:
    return RefusedError(f"the reference bank {folder} is damaged: {name} has changed; export the model again")
