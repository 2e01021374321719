"""Preparation file by file: resumed, shared out, in bounded memory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from refbert_dist.config import Experiment, load_experiment, parse_experiment
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokens import TokenSet, build_tokens, tokens_artifact
from refbert_dist.data.units import DOCUMENT_BITS
from refbert_dist.engine.world import World, free_port
from refbert_dist.errors import RefusedError, UserError

DOCUMENTS = ["\n".join(document.split("\n")[:6]) for document in list(python_docs_documents())[:24]]
WORDS = sorted({word for document in DOCUMENTS for word in document.split()})
PER_FILE = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a quick tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(folder, WORDS)
    return folder


def save_tokenizer(folder: Path, words: list[str]) -> None:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        documents = DOCUMENTS[number * PER_FILE : (number + 1) * PER_FILE]
        (folder / f"part-{number}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder


def experiment(model: Path, cache: Path, path: Path, **corpus: object) -> Experiment:
    return parse_experiment(
        {
            "teacher": {"model": str(model)},
            "cache": {"dir": str(cache), "shard_tokens": 20},
            "corpus": {"path": str(path), "max_length": 24, "min_length": 5, **corpus},
        }
    )


def content(exp: Experiment) -> dict[str, bytes]:
    """Names and bytes of all files of the artefact."""
    folder = tokens_artifact(exp, "corpus").path
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def build(file: Path, kill_at: int = 0) -> None:
    """What each of several processes does, until it has so many samples."""

    def progress(samples: int) -> None:
        if kill_at and samples >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    build_tokens(load_experiment(file), "corpus", progress, World.from_environment().share_start)


def stored(exp: Experiment, file: Path) -> Path:
    file.write_text(exp.model_dump_json(exclude_unset=True))
    return file


def test_every_file_has_shards_and_a_record_of_its_own(model: Path, text: Path, tmp_path: Path) -> None:
    (text / "part-9.txt").write_text("\n\n")  # without a document
    (text / "part-91.txt").write_text("too short\n\n")
    exp = experiment(model, tmp_path / "cache", text)
    manifest = build_tokens(exp, "corpus")
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    words = sum(len(document.split()) for document in DOCUMENTS)
    lost = manifest["tokens"] - 2 * manifest["samples"] - words
    assert -3 * (manifest["dropped_short"] - 1) <= lost < 0
    assert (manifest["documents"], manifest["samples"]) == (len(DOCUMENTS) + 1, len(tokens))
    assert manifest["tokens"] == tokens.lengths.sum()
    assert manifest["length_counts"] == np.bincount(tokens.lengths).tolist()
    assert [Path(source["path"]).name for source in manifest["sources"]] == sorted(path.name for path in text.iterdir())
    expected = [(number // PER_FILE << DOCUMENT_BITS) + number % PER_FILE for number in range(len(DOCUMENTS))]
    assert np.unique(tokens.documents).tolist() == expected
    assert manifest["names"] == sorted(manifest["names"])
    assert {name[:10] for name in manifest["names"]} == {f"file-0000{number}" for number in range(6)}
    assert tokens_artifact(exp, "corpus").committed() == set(manifest["names"])
    # What a file gives does not depend on the files beside it.
    alone = experiment(model, tmp_path / "alone", text / "part-2.txt")
    assert build_tokens(alone, "corpus")["samples"] == sum("file-00002" in name for name in names_of_samples(exp))
    one = TokenSet.open(tokens_artifact(alone, "corpus"))
    first = next(number for number, name in enumerate(names_of_samples(exp)) if "file-00002" in name)
    for sample in range(len(one)):
        assert one.ids(sample).tolist() == tokens.ids(first + sample).tolist()


def names_of_samples(exp: Experiment) -> list[str]:
    artifact = tokens_artifact(exp, "corpus")
    return [name for name in artifact.names() for _ in range((artifact.sidecar(name) or {}).get("samples", 0))]


@pytest.mark.faults
def test_a_killed_preparation_goes_on_after_the_last_whole_file(model: Path, text: Path, tmp_path: Path) -> None:
    whole = experiment(model, tmp_path / "whole", text)
    build_tokens(whole, "corpus")
    exp = experiment(model, tmp_path / "cache", text)
    artifact, file = tokens_artifact(exp, "corpus"), stored(exp, tmp_path / "exp.yaml")
    # Each start does this file whole and is killed in the middle of the next. What a dead one claimed comes last.
    for number in (0, 2):
        samples = sum(name.startswith(f"file-0000{number}") for name in names_of_samples(whole))
        killed = forked.start(World(0, 1, 0), free_port(), tmp_path / "log", build, file, samples + 1)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    standing = {path.name: path.stat().st_mtime_ns for path in artifact.path.glob("file-*.json")}
    assert [name for name in sorted(standing) if name.count("-") == 1] == ["file-00000.json", "file-00002.json"]
    assert {"file-00001-00000.json", "file-00003-00000.json"} <= set(standing)
    assert not artifact.complete
    build_tokens(exp, "corpus")
    assert content(exp) == content(whole)
    assert {name: (artifact.path / name).stat().st_mtime_ns for name in standing} == standing


@pytest.mark.dist
def test_three_processes_make_what_one_makes(model: Path, text: Path, tmp_path: Path) -> None:
    whole = experiment(model, tmp_path / "whole", text)
    build_tokens(whole, "corpus")
    exp = experiment(model, tmp_path / "cache", text)
    forked.run(3, tmp_path / "logs", build, stored(exp, tmp_path / "exp.yaml"), group_size=1)
    assert content(exp) == content(whole)


def test_a_file_whose_shard_was_taken_back_is_done_again(model: Path, text: Path, tmp_path: Path) -> None:
    exp = experiment(model, tmp_path / "cache", text)
    build_tokens(exp, "corpus")
    before = content(exp)
    artifact = tokens_artifact(exp, "corpus")
    artifact.discard(["file-00001-00000"])
    build_tokens(exp, "corpus")
    assert content(exp) == before


def unfinished(exp: Experiment, *names: str) -> None:
    """Make it look as if the preparation had been stopped before these commits and the manifest."""
    build_tokens(exp, "corpus")
    for name in (*names, "manifest"):
        (tokens_artifact(exp, "corpus").path / f"{name}.json").unlink()


def change_first(text: Path) -> None:
    (text / "part-0.txt").write_text("\n\n".join(DOCUMENTS[1:PER_FILE]))


def add_a_file(text: Path) -> None:
    (text / "part-00.txt").write_text("one more file that nobody has seen before")


@pytest.mark.parametrize(
    ("lost", "change"),
    [(["file-00000"], change_first), ([], change_first), ([], add_a_file)],
    ids=["shards", "record", "files"],
)
def test_text_that_changed_between_two_starts_is_refused(
    model: Path, text: Path, tmp_path: Path, lost: list[str], change: Callable[[Path], None]
) -> None:
    exp = experiment(model, tmp_path / "cache", text)
    unfinished(exp, *lost)
    change(text)
    with pytest.raises(RefusedError, match="holds a shard of other text from an interrupted run"):
        build_tokens(exp, "corpus")


def test_another_tokenizer_between_two_starts_is_refused(text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save_tokenizer(model, WORDS)
    exp = experiment(model, tmp_path / "cache", text)
    unfinished(exp, "file-00003")
    save_tokenizer(model, WORDS[::-1])
    with pytest.raises(RefusedError, match="made with another tokenizer; remove that folder"):
        build_tokens(exp, "corpus")


def test_a_file_that_changes_while_it_is_read_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    exp = experiment(model, tmp_path / "cache", text)

    def grow(samples: int) -> None:
        with (text / "part-0.txt").open("a") as stream:
            stream.write(" more")

    with pytest.raises(UserError, match=r"corpus.path: .*part-0.txt has changed while it was read; run again when"):
        build_tokens(exp, "corpus", grow)
    assert not tokens_artifact(exp, "corpus").complete


def test_a_file_that_goes_away_is_one_sentence(model: Path, text: Path, tmp_path: Path) -> None:
    exp = experiment(model, tmp_path / "cache", text)
    with pytest.raises(UserError, match=r"corpus.path: .*part-3.txt cannot be read \(No such file or directory\)"):
        build_tokens(exp, "corpus", lambda samples: (text / "part-3.txt").unlink(missing_ok=True))


def test_only_empty_files_are_no_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "text" / name).write_text(" \n")
    with pytest.raises(UserError, match="it holds no text"):
        build_tokens(experiment(model, tmp_path / "cache", tmp_path / "text"), "corpus")


def test_the_first_documents_are_one_unit(model: Path, text: Path, tmp_path: Path) -> None:
    exp = experiment(model, tmp_path / "cache", text, max_documents=PER_FILE + 2)
    manifest = build_tokens(exp, "corpus")
    assert (manifest["documents"], len(manifest["sources"])) == (PER_FILE + 2, 4)
    assert {name[:10] for name in manifest["names"]} == {"file-00000"}


MEASURE = """
import re, sys
from pathlib import Path
from refbert_dist.config import load_experiment
from refbert_dist.data.tokens import build_tokens

for number in (1, 2):
    exp = load_experiment(sys.argv[number])
    tokens = build_tokens(exp, "corpus")["tokens"]
    print(tokens, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


SMALL = 10_000_000


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(model: Path, tmp_path: Path, ending: str) -> None:
    """A file of 40 MB needs hardly more than one of 10 MB; its texts alone would need 30 MB more.

    The bound leaves room for what allocators keep: up to 13 MB were seen with Arrow's own pool and one arena a thread,
    so both are put aside.
    """
    document = " ".join(WORDS[:400])
    per_document = len(document.split())
    files = []
    for name, size in (("small", SMALL), ("large", 4 * SMALL)):
        count = size // len(document)
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"text.{ending}"
        if ending == "jsonl":
            path.write_text((json.dumps({"text": document}) + "\n") * count)
        else:
            import pyarrow
            from pyarrow import parquet

            # One row group, in which every text differs, so that a dictionary does not make the file small.
            texts = [f"{number} {document}" for number in range(count)]
            parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=count, compression="none")
        values = experiment(model, tmp_path / "cache", path, max_length=128).model_dump(mode="json")
        values["cache"]["shard_tokens"] = 16384
        exp = parse_experiment(values)
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(exp.model_dump_json())
    quiet = {"TOKENIZERS_PARALLELISM": "false", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **quiet}
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    (small, small_kb), (large, large_kb) = ([int(word) for word in line.split()] for line in lines)
    count = 4 * SMALL // len(document)
    words = count * (per_document + (ending == "parquet"))
    assert words < large < 1.03 * words
    assert large > 3.9 * small
    assert (large_kb - small_kb) * 1024 < 20_000_000
