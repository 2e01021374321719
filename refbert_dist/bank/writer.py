"""Banks are written, and later changed, without a reader ever seeing half a bank.

An update writes files under new names, then ``bank.json``, and then removes what that no longer names. A process that
had opened the bank before goes on with what it has mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refbert_dist.artifacts import hash_file, map_tensors, save_tensors, write_json
from refbert_dist.artifacts.disk import explain_disk_errors, fsync_path
from refbert_dist.bank.reader import DESCRIPTION, Description, ReferenceBank
from refbert_dist.bank.states import BankCodec, RowTable, State, encoded, write_segments
from refbert_dist.bank.texts import MappedTexts, digested
from refbert_dist.errors import UserError
from refbert_dist.references.dense import Dense
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import Retriever
from refbert_dist.references.retriever_choice import rebuilt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write_bank(
    folder: str | Path,
    texts: Sequence[TextPair],
    states: Iterable[State],
    *,
    count: int,
    retriever: Retriever,
    left_out: Iterable[int] = (),
    codec: BankCodec = "fp16",
    keep_texts: bool = True,
    projections: str = "",
    teacher: str = "",
) -> None:
    """Write a bank of N rows into a new folder.

    Args:
        folder: made if needed.
        texts: of every row, all of one kind.
        states: of every row, projected into the first layer's key and value space; read one by one.
        count: references that the model reads for each input.
        retriever: as in training, over these rows; a dense one must be by teacher layer 0.
        left_out: rows that no input may read; those of the training neighbours (``NeighbourTable.left_out``).
        codec: how states are stored.
        keep_texts: without them only digests are kept, which still keep a text from reading itself; the bank cannot be
            changed later then, and a text may read one that contains it.
        projections: fingerprint of the weights that projected the states.
        teacher: fingerprint of the teacher whose states they are.

    Raises:
        RefusedError: a state does not fit the codec.
    """
    if isinstance(retriever, Dense) and retriever.tokens is None:
        raise ValueError("a bank has no teacher to run texts through; see references.neighbours.check_exportable")
    if not texts:
        raise ValueError("a bank needs a text")
    folder = Path(folder)
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files, table = write_segments(encoded(states, codec), itertools.count(), _segment_path(folder, 0))
        description = Description(
            count=count,
            width=map_tensors(files[0])["keys"].shape[1],
            max_length=0,
            codec=codec,
            retriever=retriever.kind,
            sentences=1 if texts[0][1] is None else 2,
            texts="kept" if keep_texts else "digests",
            projections=projections,
            teacher=teacher,
            left_out=sorted(left_out),
            next_id=0,
            update=0,
            segments=[path.name for path in files],
            files={},
        )
        _commit(folder, description, table, texts, retriever)


def add_texts(
    folder: str | Path,
    texts: Sequence[TextPair],
    states: Iterable[State],
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[int]:
    """Add rows to a bank; returns their ids. The index is built anew from all texts, and no stored state is touched.

    ``states`` must come from the bank's own projections and teacher. ``tokenizer``: the model's, for a dense index.
    """
    with _updated(folder, tokenizer) as bank:
        old = bank.description
        _check_kind(bank, texts)
        ids = itertools.count(old.next_id)
        path = _segment_path(bank.folder, old.update + 1)
        files, added = write_segments(encoded(states, old.codec), ids, path, len(old.segments))
        together = [*bank.texts, *texts]
        _commit(
            bank.folder,
            replace(old, update=old.update + 1, segments=[*old.segments, *(file.name for file in files)]),
            RowTable.joined([bank.states.table, added]),
            together,
            rebuilt(bank.retriever, together, tokenizer),
        )
    return [int(number) for number in added.ids]


def replace_texts(
    folder: str | Path,
    texts: Sequence[TextPair],
    states: Iterable[State],
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[int]:
    """Put other rows in the place of all; otherwise as :func:`add_texts`. No row is left out any more."""
    with _updated(folder, tokenizer) as bank:
        old = bank.description
        _check_kind(bank, texts)
        path = _segment_path(bank.folder, old.update + 1)
        files, table = write_segments(encoded(states, old.codec), itertools.count(old.next_id), path)
        _commit(
            bank.folder,
            replace(old, update=old.update + 1, segments=[file.name for file in files], left_out=[]),
            table,
            texts,
            rebuilt(bank.retriever, texts, tokenizer),
        )
    return [int(number) for number in table.ids]


def remove_texts(folder: str | Path, ids: Iterable[int], tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Remove rows by id; their texts and states are gone from the disk, too.

    Raises :class:`UserError` for an id that the bank does not have, and when nothing would be left.
    """
    asked = np.unique(np.fromiter(ids, np.int64))
    with _updated(folder, tokenizer) as bank:
        old, table = bank.description, bank.states.table
        unknown = np.setdiff1d(asked, table.ids)
        if len(unknown):
            raise UserError(f"{folder} has no reference {unknown[0]}; give ids that predictions name")
        kept = ~np.isin(table.ids, asked)
        if not kept.any():
            raise UserError(f"this would remove all {len(table)} references of {folder}; leave at least one")
        # Segments that lose a row are written anew, so that nothing of it stays on the disk.
        rewritten = np.unique(table.segments[~kept])
        moved = kept & np.isin(table.segments, rewritten)
        standing = np.setdiff1d(np.arange(len(old.segments)), rewritten)
        stays = table[kept & ~moved]
        stays = replace(stays, segments=np.searchsorted(standing, stays.segments))
        files, written = write_segments(
            map(bank.states.stored, np.flatnonzero(moved).tolist()),
            table.ids[moved].tolist(),
            _segment_path(bank.folder, old.update + 1),
            len(standing),
        )
        both = RowTable.joined([stays, written])
        texts = [bank.texts[row] for row in np.flatnonzero(kept).tolist()]
        names = [old.segments[number] for number in standing.tolist()] + [file.name for file in files]
        _commit(
            bank.folder,
            replace(old, update=old.update + 1, segments=names),
            both[np.argsort(both.ids)],
            texts,
            rebuilt(bank.retriever, texts, tokenizer),
        )


def _check_kind(bank: ReferenceBank, texts: Sequence[TextPair]) -> None:
    if not texts:
        raise UserError(f"there is no text to put into {bank.folder}; give one at least")
    sentences = bank.description.sentences
    if (texts[0][1] is not None) != (sentences == 2):
        raise UserError(f"{bank.folder} holds texts of {sentences} sentence(s) each; give texts of the same kind")


@contextlib.contextmanager
def _updated(folder: str | Path, tokenizer: PreTrainedTokenizerFast | None) -> Iterator[ReferenceBank]:
    """Open a bank that nobody else changes meanwhile."""
    with explain_disk_errors(Path(folder)), _locked(Path(folder)):
        bank = ReferenceBank.open(folder, tokenizer)
        if bank.description.texts != "kept":
            raise UserError(
                f"{folder} holds digests instead of texts, so its index cannot be built again; export the model with "
                "export.bank_texts=true"
            )
        yield bank


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a bank against other updates; the system lets go of it when the process ends."""
    Description.read(folder)  # says in a sentence that there is no bank
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder} is being changed by another process; try again when it has ended") from None
    finally:
        os.close(handle)


def _commit(
    folder: Path, description: Description, table: RowTable, texts: Sequence[TextPair], retriever: Retriever
) -> None:
    """Write what belongs to the new state, make it the bank's, and remove what belonged to the old one only."""
    if len(table) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(table)} states: give one of each a row")
    update = description.update
    save_tensors(table.arrays())(folder / f"rows-{update}.safetensors")
    known = texts if description.texts == "kept" else [digested(text) for text in texts]
    MappedTexts.write(folder / f"texts-{update}.safetensors", known, description.sentences)
    retriever.save(folder / f"index-{update}")
    names = [
        *description.segments,
        f"rows-{update}.safetensors",
        f"texts-{update}.safetensors",
        *sorted(str(path.relative_to(folder)) for path in (folder / f"index-{update}").iterdir()),
    ]
    final = replace(
        description,
        max_length=int(table.lengths.max()),
        next_id=max(description.next_id, int(table.ids[-1]) + 1),
        files={name: description.files.get(name) or _described(folder / name) for name in names},
    )
    for name in final.files.keys() - description.files.keys():
        fsync_path(folder / name)
    write_json(folder / DESCRIPTION, final.sealed())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if str(path.relative_to(folder)) not in {*final.files, DESCRIPTION}:
            path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh3": hash_file(path)}


def _segment_path(folder: Path, update: int) -> str:
    return str(folder / f"states-{update}-{{}}.safetensors")
