import gzip
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.augment import glove as module
from refbert_dist.augment.glove import Glove
from refbert_dist.errors import UserError

WORDS = [f"{a}{b}" for a in "bcdfghklmn" for b in "aeiou"]


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(WORDS), 6)).round(4)


def lines(words: list[str], numbers: np.ndarray) -> list[str]:
    return [" ".join([word, *map(str, row)]) for word, row in zip(words, numbers.tolist(), strict=True)]


def write(path: Path, text: list[str]) -> Path:
    data = "\n".join([*text, ""]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_neighbours_are_those_of_a_direct_computation(tmp_path: Path, name: str) -> None:
    glove = Glove.load(write(tmp_path / name, lines(WORDS, vectors())))
    found = glove.nearest([WORDS[7], "BA", "unknown"], 5)
    for word, nearest in zip((7, 0), found, strict=False):
        own = vectors()[word]
        cosines = [float(row @ own / np.linalg.norm(row) / np.linalg.norm(own)) for row in vectors()]
        order = sorted(set(range(len(WORDS))) - {word}, key=lambda other: -cosines[other])
        assert nearest == [WORDS[other] for other in order[:5]]
    assert found[2] == []


def test_neighbours_do_not_depend_on_what_is_asked_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [Glove(WORDS, vectors()).nearest([word], 9)[0] for word in WORDS]
    monkeypatch.setattr(module, "BLOCK_WORDS", 7)
    together = Glove(WORDS, vectors())
    assert together.nearest(WORDS[::-1], 9)[::-1] == alone == together.nearest(WORDS, 9)


def test_a_small_vocabulary_gives_what_it_has() -> None:
    assert Glove(WORDS[:3], vectors()[:3]).nearest(["ba"], 15)[0] in (["be", "bi"], ["bi", "be"])
    assert Glove(WORDS[:1], vectors()[:1]).nearest(["ba"], 15) == [[]]


def test_what_is_no_word_is_no_neighbour(tmp_path: Path) -> None:
    text = lines([*WORDS[:3], "2nd", "at name@domain.com", "'s", "Bo"], vectors()[:7])
    glove = Glove.load(write(tmp_path / "v.txt", text))
    assert glove.words == ["ba", "be", "bi", "Bo"]
    assert "Bo" in glove.nearest(["ba"], 15)[0]


def test_only_the_first_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 4)
    glove = Glove.load(write(tmp_path / "v.txt", [*lines(WORDS[:4], vectors()[:4]), "not of this kind"]))
    assert glove.words == WORDS[:4]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("bu 1 2 3", r"line 3 is not a word and 6 numbers, as line 1 has"),
        ("bu 1 2 3 4 5 six", r"line 3 is not"),
        ("bu 1 2 3 4 5 nan", r"line 3 is not"),
        ("bu\t1\t2\t3\t4\t5\t6", r"line 3 is not"),
        ("", r"line 3 is not"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, wrong: str) -> None:
    path = write(tmp_path / "v.txt", [*lines(WORDS[:2], vectors()[:2]), line, *lines(WORDS[3:5], vectors()[3:5])])
    with pytest.raises(UserError, match=wrong) as caught:
        Glove.load(path)
    assert str(caught.value).startswith(f"task.augment.glove: {path} line 3")


@pytest.mark.parametrize("text", [["400000 50"], ["word"], []])
def test_another_kind_of_file_is_refused(tmp_path: Path, text: list[str]) -> None:
    with pytest.raises(UserError, match=r"task\.augment\.glove: .* (line 1 is not a word|holds no words)"):
        Glove.load(write(tmp_path / "v.txt", text) if text else _empty(tmp_path / "v.txt"))


def _empty(path: Path) -> Path:
    path.touch()
    return path
