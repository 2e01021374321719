"""References of a finished model are changed without training; the export of a tiny run gives model and teacher."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import MINILM, tiny_experiment
from typer.testing import CliRunner

from launchers.cli import app
from refbert_dist import pipeline
from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.cache.contract import teacher_spec
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.inference.new_texts import BankEditor
from refbert_dist.inference.pipeline import RefBertPipeline

QUICK = ("systems=[refbert]", "finetune.steps=2", "distill.intermediate.steps=2", "distill.prediction.steps=2")
ASKED = ("The apple trees of the valley are in flower.", "Apple trees flower in the valley now.")
NEW = ("In the valley apple trees came into flower early.", "Apple trees are early.")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    exp = tiny_experiment(tmp_path_factory.mktemp("bank"), "corpus=null", *QUICK)
    pipeline.run(exp)
    return exp


@pytest.fixture
def folder(done: Experiment, tmp_path: Path) -> Path:
    copied = tmp_path / "model"
    shutil.copytree(done.run.dir / "export", copied)
    return copied


def test_a_bank_built_again_from_its_texts_is_the_same(done: Experiment, folder: Path) -> None:
    """Teacher, tokenizer and projections from the model folder and the teacher's, instead of from caches."""
    before = ReferenceBank.open(done.run.dir / "export" / "bank")
    texts = TokenSet.open(tokens_artifact(done, "train")).texts()
    editor = BankEditor(folder)
    ids = editor.rebuild(texts, teacher_spec(done, "task"))
    assert ids == list(range(len(texts), 2 * len(texts)))
    after = editor.open()
    rows = np.arange(len(texts))[:, None]
    for old, new in zip(before.gather(rows), after.gather(rows), strict=True):
        np.testing.assert_allclose(old, new, rtol=2e-3, atol=2e-3)
    asked = TokenSet.open(tokens_artifact(done, "dev")).texts()
    assert (after.lookup(asked) == before.lookup(asked)).mean() > 0.9, "only rows left out before differ"


def test_texts_come_and_go_from_the_command_line(done: Experiment, folder: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception:
            raise result.exception
        return result.stdout

    size = len(BankEditor(folder).open())
    (before,) = RefBertPipeline(folder)([ASKED])
    lines = tmp_path / "lines.txt"
    lines.write_text("\t".join(NEW) + "\n")
    teacher = teacher_spec(done, "task")
    assert run("bank", "add", folder, lines, "--teacher", teacher, "--dry-run") == f"would add 1 texts to {folder}\n"
    assert f"added 1 texts to {folder}: ids {size} to {size}" in run("bank", "add", folder, lines, "--teacher", teacher)
    (after,) = RefBertPipeline(folder)([ASKED])
    assert after["references"][0] == size and size not in before["references"]
    assert run("bank", "show", folder, size) == f"{size}\t{NEW[0]}\t{NEW[1]}\n"
    assert f"{size + 1:,} texts (kept), ids 0 to {size}; looked up by bm25, 2 read" in run("bank", "show", folder)
    assert run("bank", "remove", folder, size) == f"removed 1 texts from {folder}\n"
    assert RefBertPipeline(folder)([ASKED]) == [before]
    assert run("bank", "verify", folder) == f"{folder} is as it was written\n"
    with pytest.raises(UserError, match=f"has no reference {size}"):
        run("bank", "show", folder, size)


def test_states_of_another_teacher_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--teacher is .*, which is not the teacher whose states"):
        BankEditor(folder).add([NEW], MINILM)
    with pytest.raises(UserError, match="there is no text to put into"):
        BankEditor(folder).add([], MINILM)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        BankEditor(folder / "bank")
    assert json.loads((folder / "bank" / "bank.json").read_text())["update"] == 0
