import os
import signal
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from masked_models import masked_model
from tiny import tiny_experiment, tiny_task, tiny_vectors

from refbert_dist.augment import build as module
from refbert_dist.augment.build import build_augmented
from refbert_dist.augment.words import STOP_WORDS, WORD
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.data.tokens import Part, TokenSet, build_tokens, parts, tokens_artifact
from refbert_dist.engine.world import World, free_port
from refbert_dist.errors import UserError

ROWS, COPIES, SHARD, BLOCK = 60, 4, 12, 5


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(module, "BLOCK_ROWS", BLOCK)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augment")
    tiny_experiment(folder)
    tiny_vectors(folder / "vectors.txt", folder / "task")
    masked_model(folder / "masked")
    return folder


def asked(root: Path, cache: Path, *overrides: str) -> Experiment:
    augment = f"task.augment={{copies: {COPIES}, glove: {root / 'vectors.txt'}}}"
    return tiny_experiment(root, "corpus=null", augment, f"cache.dir={cache}", f"run.dir={cache / 'run'}", *overrides)


def experiment(root: Path, cache: Path, *overrides: str) -> Experiment:
    exp = asked(root, cache, *overrides)
    build_tokens(exp, "train")
    return exp


def both(root: Path, cache: Path, *overrides: str) -> Experiment:
    return experiment(root, cache, f"task.augment.masked_lm={root / 'masked'}", "cache.batch_tokens=300", *overrides)


def token_set(exp: Experiment, part: Part = "augmented") -> TokenSet:
    return TokenSet.open(tokens_artifact(exp, part))


def copies(exp: Experiment) -> dict[tuple[str, str | None], list[tuple[str, str | None]]]:
    """The copies of each row by its text."""
    tokens, rows = token_set(exp), token_set(exp, "train").texts()
    assert tokens.sources is not None
    found: dict[Any, Any] = {row: [] for row in rows}
    for text, source in zip(tokens.texts(), tokens.sources.tolist(), strict=True):
        found[rows[source]].append(text)
    return found


def content(exp: Experiment) -> dict[str, bytes]:
    folder = tokens_artifact(exp, "augmented").path
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_rows_are_followed_by_their_copies_with_label_and_group(root: Path, tmp_path: Path) -> None:
    exp = experiment(root, tmp_path)
    assert parts(exp) == ("train", "dev", "augmented")
    seen: list[int] = []
    manifest = build_augmented(exp, seen.append)
    train, tokens = token_set(exp, "train"), token_set(exp)
    assert tokens.sources is not None and tokens.labels is not None and train.labels is not None
    assert (np.diff(tokens.sources) >= 0).all() and np.unique(tokens.sources).tolist() == list(range(ROWS))
    assert tokens.labels.tolist() == train.labels[tokens.sources].tolist()
    assert tokens.documents.tolist() == train.documents[tokens.sources].tolist()
    for row in range(ROWS):
        first = int(np.searchsorted(tokens.sources, row))
        assert tokens.texts(first, first + 1) == train.texts(row, row + 1)
        assert tokens.ids(first).tolist() == train.ids(row).tolist()
        assert tokens.types(first).tolist() == train.types(row).tolist()
    assert manifest["samples"] == len(tokens) == ROWS + manifest["copies"]
    assert manifest["copies"] + manifest["duplicates"] == ROWS * COPIES
    assert manifest["tokens"] == tokens.lengths.sum()
    assert manifest["length_counts"] == np.bincount(tokens.lengths).tolist()
    assert (manifest["rows"], manifest["shards"], manifest["documents"]) == (ROWS, 5, len(set(train.documents)))
    assert seen[-1] == ROWS and seen == sorted(seen) and len(seen) == 5 * 3 + 1


@pytest.mark.parametrize("experiment_of", [experiment, both])
def test_copies_differ_in_content_words_alone(root: Path, tmp_path: Path, experiment_of: Any) -> None:
    exp = experiment_of(root, tmp_path)
    build_augmented(exp)
    changed = 0
    for row, (first, *others) in copies(exp).items():
        assert first == row
        assert len({row, *others}) == 1 + len(others)
        for sentence, altered in ((row[side], copy[side]) for copy in others for side in (0, 1)):
            assert sentence and altered
            before, after = WORD.findall(sentence), WORD.findall(altered)
            assert len(before) == len(after)
            assert WORD.sub("", sentence) == WORD.sub("", altered)
            different = [old for old, new in zip(before, after, strict=True) if old != new]
            assert all(word.isalpha() and word.lower() not in STOP_WORDS for word in different)
            changed += len(different)
    assert changed > 100


@pytest.mark.parametrize("experiment_of", [experiment, both])
def test_the_copies_of_a_row_depend_on_seed_and_row_alone(
    root: Path, tmp_path: Path, experiment_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = experiment_of(root, tmp_path)
    build_augmented(exp)
    header, *rows = (root / "task" / "train.tsv").read_text().splitlines()
    tiny_task(tmp_path / "turned")
    (tmp_path / "turned" / "train.tsv").write_text("\n".join([header, *rows[40::-1]]) + "\n")
    monkeypatch.setattr(module, "SHARD_ROWS", 7)
    turned = experiment_of(root, tmp_path, f"task.path={tmp_path / 'turned'}")
    build_augmented(turned)
    expected = copies(exp)
    assert copies(turned) == {row: expected[row] for row in copies(turned)}
    other = experiment_of(root, tmp_path, "seed=2")
    build_augmented(other)
    assert copies(other) != expected
    more = experiment_of(root, tmp_path, "task.augment.copies=9")
    build_augmented(more)
    assert all(found[: len(expected[row])] == expected[row] for row, found in copies(more).items())


def test_probability_0_leaves_the_rows_alone(root: Path, tmp_path: Path) -> None:
    exp = experiment(root, tmp_path, "task.augment.probability=0")
    manifest = build_augmented(exp)
    assert (manifest["copies"], manifest["duplicates"]) == (0, ROWS * COPIES)
    assert token_set(exp).texts() == token_set(exp, "train").texts()


def build(file: Path, kill_at: int = 0) -> None:
    """What each of several processes does, until so many rows are done."""
    module.SHARD_ROWS, module.BLOCK_ROWS = SHARD, BLOCK

    def progress(rows: int) -> None:
        if kill_at and rows >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    build_augmented(load_experiment(file), progress, World.from_environment().share_start)


def stored(exp: Experiment, file: Path) -> Path:
    file.write_text(exp.model_dump_json(exclude_unset=True))
    return file


@pytest.mark.dist
@pytest.mark.faults
def test_killed_and_shared_out_it_is_what_one_process_makes(root: Path, tmp_path: Path) -> None:
    whole = both(root, tmp_path / "whole")
    build_augmented(whole)
    exp = both(root, tmp_path / "cache")
    artifact, file = tokens_artifact(exp, "augmented"), stored(exp, tmp_path / "exp.yaml")
    killed = forked.start(World(0, 1, 0), free_port(), tmp_path / "log", build, file, 2 * SHARD + BLOCK)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert artifact.committed() == {"shard-00000", "shard-00001"} and not artifact.complete
    standing = {path: path.stat().st_mtime_ns for path in artifact.path.glob("shard-0000[01].*")}
    forked.run(3, tmp_path / "logs", build, file, group_size=1)
    assert content(exp) == content(whole)
    assert {path: path.stat().st_mtime_ns for path in standing} == standing


def test_a_shard_that_was_taken_back_is_written_again(root: Path, tmp_path: Path) -> None:
    exp = both(root, tmp_path)
    build_augmented(exp)
    before = content(exp)
    tokens_artifact(exp, "augmented").discard(["shard-00002"])
    build_augmented(exp)
    assert content(exp) == before
    times = {path: path.stat().st_mtime_ns for path in tokens_artifact(exp, "augmented").path.iterdir()}
    build_augmented(exp)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("finished", [True, False])
def test_other_vectors_in_the_same_file_are_refused(root: Path, tmp_path: Path, finished: bool) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_bytes((root / "vectors.txt").read_bytes())
    exp = experiment(root, tmp_path, f"task.augment.glove={vectors}")
    build_augmented(exp)
    if not finished:
        tokens_artifact(exp, "augmented").discard(["shard-00002"])
    vectors.write_text(vectors.read_text().replace("1", "2"))
    with pytest.raises(UserError, match=r"vectors\.txt has changed|glove_fingerprint differs"):
        build_augmented(exp)


@pytest.mark.parametrize("finished", [True, False])
def test_another_masked_language_model_in_the_same_folder_is_refused(
    root: Path, tmp_path: Path, finished: bool
) -> None:
    folder = masked_model(tmp_path / "masked")
    exp = experiment(root, tmp_path, f"task.augment.masked_lm={folder}")
    build_augmented(exp)
    if not finished:
        tokens_artifact(exp, "augmented").discard(["shard-00002"])
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(folder)
    model.cls.predictions.bias.data += 1.0
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="masked_lm_fingerprint differs"):
        build_augmented(exp)


def test_each_setting_has_its_own_key_and_none_leaves_the_rows_keys_as_they_are(root: Path, tmp_path: Path) -> None:
    def key(*overrides: str, part: Part = "augmented") -> str:
        exp = asked(root, tmp_path, "task.augment.masked_lm=some/model", *overrides)
        return tokens_artifact(exp, part).path.name

    assert key(part="train") == key("task.augment=null", part="train")
    changes = [
        "copies=5",
        "probability=0.3",
        "per_word=9",
        "candidates=glove",
        "candidates=masked-lm",
        "masked_lm=null",
    ]
    others = [key(f"task.augment.{change}") for change in changes] + [key("seed=9"), key("task.max_train=9")]
    assert len({key(), *others}) == 1 + len(others)
    assert key("cache.batch_tokens=77") == key()
    assert key(f"task.augment.glove={os.path.relpath(root / 'vectors.txt')}") == key()
    # What is not read does not count.
    assert key("task.augment.candidates=glove", "task.augment.masked_lm=null") == others[3]
    assert key("task.augment.candidates=masked-lm", "task.augment.glove=null") == others[4]
