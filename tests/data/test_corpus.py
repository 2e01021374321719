import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from refbert_dist.config import CorpusConfig
from refbert_dist.data.corpus import MAX_TEXT_CHARACTERS, check_corpus, sources
from refbert_dist.errors import UserError

DOCUMENTS = ["First line.\nSecond line.", "Eine Zeile, ungefähr.", "Third document."]
TEXT = "\ufeff\n\nFirst line.\r\nSecond line.\n  \t \n\nEine Zeile, ungefähr.\n\nThird document."


def read(path: Path | str, **fields: object) -> list[str]:
    corpus = CorpusConfig(path=str(path), **fields)  # type: ignore[arg-type]
    return [document for source in sources(corpus) for document in source.documents()]


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    pyarrow.parquet.write_table(pyarrow.table({column: texts, "n": list(range(len(texts)))}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same documents in every format."""
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    rows = [{"text": DOCUMENTS[0], "n": 1}, {"n": "one", "text": DOCUMENTS[1]}, {"text": None}, {"text": DOCUMENTS[2]}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_parquet(tmp_path / "a.parquet", [DOCUMENTS[0], "  ", DOCUMENTS[1], None, DOCUMENTS[2]])
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_documents(folder: Path, name: str) -> None:
    assert read(folder / name) == DOCUMENTS


def test_a_folder_is_read_in_sorted_order_and_other_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.txt").write_text(DOCUMENTS[1])
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": DOCUMENTS[0]}))
    (tmp_path / "sub" / "c.txt").write_text(DOCUMENTS[2])
    (tmp_path / ".hidden" / "d.txt").write_text("hidden")
    (tmp_path / "README.md").write_text("not data")
    assert read(tmp_path) == DOCUMENTS
    found = sources(CorpusConfig(path=str(tmp_path)))
    assert [[str(path.relative_to(tmp_path.resolve())) for path in source.files] for source in found] == [
        ["a.jsonl"],
        ["b.txt"],
        ["sub/c.txt"],
    ]
    assert [list(source.documents()) for source in found] == [[document] for document in DOCUMENTS]


def test_the_first_documents_are_one_source_over_all_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("\n\n".join(DOCUMENTS))
    (only,) = sources(CorpusConfig(path=str(tmp_path), max_documents=4))
    assert list(only.documents()) == [*DOCUMENTS, DOCUMENTS[0]]
    assert len(only.files) == 3


def test_a_path_is_no_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "x[1]*"
    odd.mkdir()
    write_parquet(odd / "p.parquet", ["found"])
    assert read(odd) == ["found"]


def test_max_documents_and_another_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", ["one", "two", "three"], column="body")
    assert read(tmp_path / "p.parquet", text_column="body", max_documents=2) == ["one", "two"]


def test_text_without_blank_lines_is_cut_so_that_memory_stays_bounded(tmp_path: Path) -> None:
    line = "word " * 200
    lines = 3 * MAX_TEXT_CHARACTERS // len(line)
    (tmp_path / "a.txt").write_text(f"{line}\n" * lines)
    found = read(tmp_path / "a.txt")
    assert len(found) == 3
    assert max(map(len, found)) < 1.1 * MAX_TEXT_CHARACTERS
    assert "\n".join(found).count("word") == 200 * lines


def test_a_file_of_one_endless_line_is_cut_at_spaces(tmp_path: Path) -> None:
    text = "anarchism originated as a term of abuse " * 80_000
    (tmp_path / "text8.txt").write_text(text)
    found = read(tmp_path / "text8.txt")
    assert len(found) == 2
    assert max(map(len, found)) < 2.1 * MAX_TEXT_CHARACTERS
    assert " ".join(found).split() == text.split()
    (tmp_path / "no.txt").write_text("x" * (MAX_TEXT_CHARACTERS + 1))
    assert "no.txt line 1 has 1,048,576 bytes without a space; break it into lines" in sentence(tmp_path / "no.txt")


def test_explicit_format_reads_any_ending(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text("a\n\nb")
    assert read(tmp_path / "wiki_00", format="text") == ["a", "b"]
    assert read(tmp_path, format="text") == ["a", "b"]


def test_a_data_set_is_read_by_name_and_split(tmp_path: Path) -> None:
    """The data set library takes a folder for a name, so the hub's reader can be tried without the hub."""
    write_parquet(tmp_path / "train-0.parquet", ["one", None, "two"])
    write_parquet(tmp_path / "validation-0.parquet", ["three"])
    assert read(tmp_path, format="hub") == ["one", "two"]
    assert read(tmp_path, format="hub", split="validation") == ["three"]
    assert "corpus.split=test: Bad split: test" in sentence(tmp_path, format="hub", split="test")
    assert "its columns are text, n" in sentence(tmp_path, format="hub", text_column="body")
    assert [source.files for source in sources(CorpusConfig(path=str(tmp_path), format="hub"))] == [()]


def test_builtin_documents_need_no_file() -> None:
    corpus = CorpusConfig(path="builtin:python-docs", max_documents=3)
    assert len(list(sources(corpus)[0].documents())) == 3
    assert [source.files for source in sources(corpus)] == [()]


def sentence(path: Path | str, **fields: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file_or_folder(tmp_path: Path) -> None:
    assert sentence("nowhere").startswith("corpus.path is 'nowhere': no such file or folder; ")
    assert "no such file or folder" in sentence(tmp_path / "gone.txt")
    assert "no such file or folder" in sentence("missing/data.jsonl")


def test_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    assert "does not end in one of .txt" in sentence(tmp_path / "a.csv")
    assert "holds no file that ends in one of" in sentence(tmp_path)
    assert "set corpus.format" in sentence(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_without_text_has_no_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(" \n\n")
    assert read(tmp_path / name) == []


def test_undecodable_bytes_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff\xfe\n")
    assert "a.txt line 2 is not UTF-8" in sentence(tmp_path / "a.txt")


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "cut off\n')
    assert "a.jsonl line 2 is not valid JSON" in sentence(path)
    path.write_text('["text"]\n')
    assert "a.jsonl line 1 is not a JSON object" in sentence(path)


def test_missing_or_wrong_column_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n')
    assert "which" in sentence(tmp_path / "a.jsonl")
    assert "its columns are body, id" in sentence(tmp_path / "a.jsonl")
    assert "corpus.text_column is 'id'" in sentence(tmp_path / "a.jsonl", text_column="id")
    write_parquet(tmp_path / "a.parquet", ["x"], column="body")
    assert "its columns are body, n" in sentence(tmp_path / "a.parquet")
    assert "holds a int there" in sentence(tmp_path / "a.parquet", text_column="n")


def test_damaged_parquet_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    assert "a.parquet is not a readable Parquet file" in sentence(tmp_path / "a.parquet")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(TEXT.encode() * 99)[:-9])
    assert "b.txt.gz is damaged" in sentence(tmp_path / "b.txt.gz")


def test_unknown_builtin() -> None:
    assert "the only built-in corpus is 'builtin:python-docs'" in sentence("builtin:wikipedia")


def test_check_sees_the_first_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\nbroken\n')
    check_corpus(CorpusConfig(path=str(path)))
    with pytest.raises(UserError, match="its columns are text"):
        check_corpus(CorpusConfig(path=str(path), text_column="body"))
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(UserError, match="its columns are text, n"):
        check_corpus(CorpusConfig(path=str(tmp_path / "a.parquet"), text_column="body"))
    with pytest.raises(UserError, match="no such file"):
        check_corpus(CorpusConfig(path="nowhere"))


def test_hub_name_offline_is_one_sentence_that_says_so() -> None:
    program = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('the network was touched')\n"
        "socket.create_connection = refuse\n"
        "from refbert_dist.config import CorpusConfig\n"
        "from refbert_dist.data.corpus import sources, check_corpus\n"
        "from refbert_dist.errors import UserError\n"
        "corpus = CorpusConfig(path='nobody/nothing:config')\n"
        "check_corpus(corpus)\n"
        "try: list(sources(corpus)[0].documents())\n"
        "except UserError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "corpus.path is 'nobody/nothing:config'" in done.stdout
    assert "HF_HUB_OFFLINE is set" in done.stdout
