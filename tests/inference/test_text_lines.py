from pathlib import Path

import pytest

from refbert_dist.errors import UserError
from refbert_dist.inference.lines import parse_lines


def test_lines_are_texts_or_pairs() -> None:
    assert list(parse_lines(["one text\n", "another\r\n", "last"])) == [
        ("one text", None),
        ("another", None),
        ("last", None),
    ]
    assert list(parse_lines(["a\tb\n", "c \t\n"])) == [("a", "b"), ("c ", "")]
    assert list(parse_lines([])) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\n", "a\tb\n"], "line 2 has 2 tab-separated texts, expected 1"),
        (["a\tb\n", "c\td\n", "a\n"], "line 3 has 1 tab-separated texts, expected 2"),
        (["a\tb\tc\n"], "line 1 has 3 tab-separated texts, expected 2"),
        (["a\n", "\n"], "line 2 is empty"),
        ([" \t \n"], "line 1 is empty"),
    ],
)
def test_lines_that_are_wrong_are_named(lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(parse_lines(lines))


def test_lines_before_a_wrong_one_are_answered() -> None:
    parsed = parse_lines(["good\n", "\n"])
    assert next(parsed) == ("good", None)
    with pytest.raises(UserError, match="line 2"):
        next(parsed)


def test_what_is_not_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"bad \xff\n")
    with path.open(encoding="utf-8") as stream, pytest.raises(UserError, match="not UTF-8"):
        list(parse_lines(stream))
