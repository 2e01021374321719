import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from banks import LENGTHS, TEXTS, WIDTH, states, words, write
from tiny import MINILM

from refbert_dist.bank import states as bank_states
from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.bank.writer import add_texts, remove_texts, write_bank
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.dense import Dense, TokenVectors
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import RandomDraw, Retriever
from refbert_dist.references.retriever_choice import rebuilt, token_vectors

MORE: list[TextPair] = [("green apples hang on trees", None), ("grey clouds bring rain", None)]
MORE_LENGTHS = (2, 3)


def decoded(bank: ReferenceBank) -> list[tuple[np.ndarray, np.ndarray]]:
    keys, values, mask = bank.gather(np.arange(len(bank))[:, None])
    return [(keys[row, 0][mask[row, 0]], values[row, 0][mask[row, 0]]) for row in range(len(bank))]


def same(found: list[tuple[np.ndarray, np.ndarray]], expected: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    return all((a == b).all() for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True))


@pytest.fixture(params=[1, 1 << 28], ids=["segment-a-row", "one-segment"])
def segment_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_states, "SEGMENT_BYTES", request.param)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
@pytest.mark.usefixtures("segment_bytes")
def test_rows_come_and_go_as_if_the_bank_had_been_written_so(tmp_path: Path, codec: str) -> None:
    folder = write(tmp_path / "bank", codec=codec, left_out=[1])
    assert add_texts(folder, MORE, states(MORE_LENGTHS, seed=1)) == [4, 5]
    remove_texts(folder, [0, 4])
    assert add_texts(folder, MORE[:1], states(MORE_LENGTHS[:1], seed=2)) == [6]
    bank = ReferenceBank.open(folder)
    bank.verify()
    texts = [*TEXTS[1:], MORE[1], MORE[0]]
    rows = [*states()[1:], states(MORE_LENGTHS, seed=1)[1], states(MORE_LENGTHS[:1], seed=2)[0]]
    write_bank(
        tmp_path / "fresh",
        texts,
        rows,
        count=2,
        retriever=words(texts),
        left_out=[0],
        codec=codec,  # type: ignore[arg-type]
    )
    fresh = ReferenceBank.open(tmp_path / "fresh")
    assert (bank.ids.tolist(), list(bank.texts)) == ([1, 2, 3, 5, 6], texts)
    assert same(decoded(bank), decoded(fresh))
    asked: list[TextPair] = [("red apples hang", None), ("birds and clouds", None), ("sour green pears", None)]
    assert bank.lookup(asked).tolist() == fresh.lookup(asked).tolist()
    assert (bank.lookup(asked) >= 0).sum() > 3
    assert bank.description.max_length == 4


@pytest.mark.usefixtures("segment_bytes")
def test_nothing_stays_of_what_was_removed(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    gone = ReferenceBank.open(folder).states.stored(2)
    remove_texts(folder, [2])
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(b"pears" in content or gone["keys"].tobytes() in content for content in contents)
    described = ReferenceBank.open(folder).description
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*described.files, "bank.json"}
    assert not (folder / "index-0").exists()


def test_an_open_bank_goes_on_as_it_was(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    bank = ReferenceBank.open(folder)
    remove_texts(folder, [0])
    assert bank.lookup([("red apples", None)]).tolist() == [[0, 2]]
    assert same(decoded(bank), [tuple(part.astype(np.float16) for part in row) for row in states()])  # type: ignore[misc]


@pytest.mark.faults
def test_an_update_that_is_killed_leaves_the_bank_as_it_was(tmp_path: Path) -> None:
    """Killed before the description is written, and again when the description is but old files are still there."""
    folder = write(tmp_path / "bank")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom refbert_dist.bank import writer\n"
        "before, write = sys.argv[2] == 'before', writer.write_json\n"
        "def killed(*given):\n    if not before:\n        write(*given)\n    os.kill(os.getpid(), 9)\n"
        "writer.write_json = killed\nwriter.remove_texts(sys.argv[1], [0])\n"
    )
    for when, rows in (("before", 4), ("after", 3)):
        done = subprocess.run([sys.executable, "-c", program, str(folder), when], check=False)
        assert done.returncode == -9
        bank = ReferenceBank.open(folder)
        bank.verify()
        assert len(bank) == rows
    remove_texts(folder, [1])
    bank = ReferenceBank.open(folder)
    assert bank.ids.tolist() == [2, 3]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*bank.description.files, "bank.json"}


def test_only_one_changes_a_bank_at_a_time(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="is being changed by another process; try again"):
        remove_texts(folder, [0])
    os.close(handle)
    remove_texts(folder, [0])


@pytest.mark.parametrize("kind", ["dense", "random"])
def test_other_indexes_are_built_again(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(MINILM)
    tokenizer.model_max_length = 32
    retriever: Retriever = RandomDraw(4, 3)
    if kind == "dense":
        table = np.random.default_rng(0).normal(size=(len(tokenizer), 16)).astype(np.float32)
        tokens = TokenVectors.learn(table, [np.array(tokenizer(text)["input_ids"]) for text, _ in TEXTS])
        retriever = Dense.build(token_vectors(tokens, tokenizer, TEXTS), "flat", tokens)
    folder = write(tmp_path / "bank", retriever=retriever)
    add_texts(folder, MORE, states(MORE_LENGTHS), tokenizer)
    bank = ReferenceBank.open(folder, tokenizer)
    texts = [*TEXTS, *MORE]
    write_bank(
        tmp_path / "fresh",
        texts,
        states((*LENGTHS, *MORE_LENGTHS)),
        count=2,
        retriever=rebuilt(retriever, texts, tokenizer),
    )
    fresh = ReferenceBank.open(tmp_path / "fresh", tokenizer)
    asked: list[TextPair] = [("apples on trees", None), ("rain at dawn", None)]
    assert bank.lookup(asked, 5).tolist() == fresh.lookup(asked, 5).tolist()
    if kind == "dense":
        assert bank.lookup(asked, 1).tolist() == [[4], [1]] or bank.lookup(asked, 1)[0] in ([0], [4])


def test_what_cannot_be_changed_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    with pytest.raises(UserError, match="has no reference 9; give ids that predictions name"):
        remove_texts(folder, [1, 9])
    with pytest.raises(UserError, match="would remove all 4 references"):
        remove_texts(folder, range(4))
    with pytest.raises(UserError, match=r"holds texts of 1 sentence\(s\) each"):
        add_texts(folder, [("one", "two")], states((2,)))
    with pytest.raises(ValueError, match="5 texts but 6 states"):
        add_texts(folder, MORE[:1], iter(states((2, 3))))
    with pytest.raises(UserError, match="holds no reference bank"):
        remove_texts(tmp_path, [0])
    without = write(tmp_path / "digests", keep_texts=False)
    with pytest.raises(UserError, match=r"holds digests instead of texts.*export.bank_texts=true"):
        add_texts(without, MORE, states(MORE_LENGTHS))
    ReferenceBank.open(folder).verify()
    assert list(ReferenceBank.open(folder).texts) == TEXTS


def test_int8_takes_half_the_space_and_is_near(tmp_path: Path) -> None:
    rows = [tuple(part * 10 for part in row) for row in states((200, 100))]
    for codec in ("fp16", "int8"):
        write_bank(tmp_path / codec, TEXTS[:2], rows, count=1, retriever=words(TEXTS[:2]), codec=codec)  # type: ignore[arg-type]
    exact, near = (decoded(ReferenceBank.open(tmp_path / codec)) for codec in ("fp16", "int8"))
    for one, two in zip(exact, near, strict=True):
        for a, b in zip(one, two, strict=True):
            assert 0 < np.abs(a - b).max() < np.abs(a).max() / 200


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for codec, number in (("fp16", 1e6), ("fp16", np.nan), ("int8", np.inf)):
        bad = [(np.full((length, WIDTH), number, np.float32),) * 2 for length in LENGTHS]
        with pytest.raises(RefusedError, match=f"the keys of the reference bank do not fit {codec} .largest magnitude"):
            write_bank(tmp_path, TEXTS, bad, count=1, retriever=words(), codec=codec)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="holds no reference bank"):
            ReferenceBank.open(tmp_path)


def test_rows_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 texts but 3 states"):
        write_bank(tmp_path, TEXTS, states()[:3], count=1, retriever=words())
    crossed = [(keys, values[:-1]) for keys, values in states()]
    with pytest.raises(ValueError, match="different lengths"):
        write_bank(tmp_path, TEXTS, crossed, count=1, retriever=words())


def test_a_bank_cannot_run_a_teacher(tmp_path: Path) -> None:
    deep = Dense.build(np.eye(4, dtype=np.float32), "flat")
    with pytest.raises(ValueError, match="check_exportable"):
        write(tmp_path / "bank", retriever=deep)
