import gzip
from pathlib import Path

import pytest

from refbert_dist.data import lines as module
from refbert_dist.data.lines import numbered_lines
from refbert_dist.errors import UserError


def test_byte_order_mark_and_line_ends_are_dropped_and_only_line_feeds_count(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\x0b\xe2\x80\xa8still two\n\nfour")
    assert list(numbered_lines(path, "f")) == [(1, "one"), (2, "two\x0b\u2028still two"), (3, ""), (4, "four")]


def test_gzip_reads_as_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("eins\nzwölf\n".encode()))
    assert list(numbered_lines(path, "f")) == [(1, "eins"), (2, "zwölf")]


def test_undecodable_bytes_name_field_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(UserError, match=r"corpus.path: .*a.txt line 2 is not UTF-8 text \(byte 3"):
        list(numbered_lines(path, "corpus.path"))


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"x\n" * 9999)[:-12]], ids=["text", "cut off"])
def test_broken_gzip_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"f: .*a.txt.gz is damaged or is not gzip after line \d+"):
        list(numbered_lines(path, "f"))


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"f: .*gone.txt cannot be read \(No such file"):
        list(numbered_lines(tmp_path / "gone.txt", "f"))


def test_a_long_line_comes_in_pieces_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffäö üß a\nshort\nabcdefg hijklmn opq".encode())
    pieces = list(numbered_lines(path, "f", piece_bytes=10))
    assert pieces == [(1, "äö "), (1, "üß a"), (2, "short"), (3, "abcdefg "), (3, "hijklmn "), (3, "opq")]
    path.write_text("one\ntwo three\nfourfour")
    with pytest.raises(UserError, match=r"f: .*a.txt line 3 has 7 bytes without a space; break it into lines"):
        list(numbered_lines(path, "f", piece_bytes=7))


def test_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("ok\n" + "x" * 20)
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 20)
    with pytest.raises(UserError, match=r"f: .*a.jsonl line 2 has 20 bytes or more; break it into lines"):
        list(numbered_lines(path, "f"))
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 21)
    assert len(list(numbered_lines(path, "f"))) == 2
