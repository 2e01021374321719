"""What is known to be wrong before anything starts."""

from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist import preflight
from refbert_dist.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.max_length=200", r"task\.max_length is 200 but the teacher has \d+ positions; set task\.max_length="),
        ("references.key_layer=9", r"references\.key_layer is 9 but the teacher has 4 layers; use 0 to 4"),
        ("references.value_layer=5", r"references\.value_layer is 5 but the teacher has 4 layers; use 0 to 4"),
        ("run.dir=ROOT/teacher/config.json", r"run\.dir is '.*' but '.*config\.json' is a file; choose a folder"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, override: str, message: str) -> None:
    exp = tiny_experiment(tmp_path, override.replace("ROOT", str(tmp_path)))
    with pytest.raises(UserError, match=message):
        preflight.check(exp)


def test_the_texts_of_rows_that_are_no_pairs(tmp_path: Path) -> None:
    task = tmp_path / "SST-2"
    task.mkdir()
    for part in ("train", "dev"):
        (task / f"{part}.tsv").write_text("sentence\tlabel\nfine\t1\n")
    given = ("task.name=SST-2", f"task.path={task}", "references.own_text=each")
    preflight.check(tiny_experiment(tmp_path, *given))
    with pytest.raises(
        UserError, match=r"own_text is 'each', but rows of SST-2 are single .*set references\.own_text=w"
    ):
        preflight.check(tiny_experiment(tmp_path, *given, "systems=[tinybert,own]"))
