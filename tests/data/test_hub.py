"""Data sets in the columns of GLUE on the hub give the rows of GLUE's own files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import glue_layouts
import pytest

from refbert_dist.config import TaskConfig
from refbert_dist.data.hub import download, is_data_set, is_remote
from refbert_dist.data.tasks import check_task, load_task, read_task, task_files, task_source
from refbert_dist.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def parquet(folder: Path, name: str) -> Path:
    for split, rows in glue_layouts.data_sets(name).items():
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")  # type: ignore[attr-defined]
    return folder


def saved(folder: Path, name: str) -> Path:
    datasets.DatasetDict(glue_layouts.data_sets(name)).save_to_disk(str(folder))  # type: ignore[arg-type]
    return folder


def named(folder: Path, name: str) -> str:
    """As the hub has it: a data set with a configuration for every task. A folder of this name serves as well."""
    parquet(folder / "owner" / "glue" / "of-glue", name)
    splits = "".join(f"  - split: {split}\n    path: of-glue/{split}-*\n" for split in glue_layouts.data_sets(name))
    card = f"---\nconfigs:\n- config_name: of-glue\n  data_files:\n{splits}---\n"
    (folder / "owner" / "glue" / "README.md").write_text(card)
    return "datasets:owner/glue/of-glue"


def task(name: str, path: Path | str, **fields: Any) -> TaskConfig:
    return TaskConfig(name=name, path=str(path), **fields)


def fault(given: TaskConfig, split: Any = "train") -> str:
    with pytest.raises(UserError) as caught:
        load_task(given, split, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", glue_layouts.NAMES)
@pytest.mark.parametrize("form", [parquet, saved])
def test_rows_are_those_of_the_tsv_files(tmp_path: Path, name: str, form: Any) -> None:
    fields = {"test_file": "test.tsv"}
    if name == "MNLI":
        fields = {"test_file": "test_matched.tsv", "test_mismatched_file": "test_mismatched.tsv"}
    original = task(name, glue_layouts.glue_folder(tmp_path / "tsv", name), **fields)
    given = task(name, form(tmp_path / "set", name), **fields)
    check_task(given)
    for split in original.splits:
        found = load_task(given, split, 0)
        assert found == load_task(original, split, 0) and len(found) >= 12
        assert is_data_set(given, split) and not is_data_set(original, split)


def test_a_named_data_set_with_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = task("MNLI", named(tmp_path, "MNLI"))
    original = task("MNLI", glue_layouts.glue_folder(tmp_path / "tsv", "MNLI"))
    assert is_remote(given) and task_files(given, "dev") == ()
    assert task_source(given, "dev-mismatched") == "datasets:owner/glue/of-glue:validation_mismatched"
    download(given)
    for split in original.splits:
        assert load_task(given, split, 0) == load_task(original, split, 0)
    wrong = task("MNLI", given.path, dev_file="validation")
    assert "whose split 'validation' cannot be read: Unknown split" in fault(wrong, "dev")


def test_files_of_a_split_are_known_for_changes_to_be_seen(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "a", "RTE")
    assert task_files(task("RTE", folder), "dev") == (folder / "validation-00000-of-00001.parquet",)
    assert [path.suffix for path in task_files(task("RTE", saved(tmp_path / "b", "RTE")), "dev")] == [".arrow"]
    # As the hub's own conversion lays them out, and a split by its name.
    numbered = tmp_path / "c"
    for split in ("train", "validation"):
        (numbered / split).mkdir(parents=True)
        (folder / f"{split}-00000-of-00001.parquet").rename(numbered / split / "0000.parquet")
    given = task("RTE", numbered, dev_file="validation")
    assert task_files(given, "dev") == (numbered / "validation" / "0000.parquet",)
    assert len(load_task(given, "dev", 0)) == 12


def test_a_file_of_the_folder_comes_first(tmp_path: Path) -> None:
    folder = parquet(tmp_path, "RTE")
    glue_layouts.write(folder / "dev.tsv", "RTE", glue_layouts.rows("RTE", 4, 9), glue_layouts.LABELLED["RTE"])
    given = task("RTE", folder)
    assert (len(load_task(given, "dev", 0)), len(load_task(given, "train", 0))) == (4, 36)


def make(folder: Path, features: dict[str, Any] | None = None, **columns: list[Any]) -> Path:
    kinds = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(columns, features=kinds).to_parquet(folder / "train.parquet")
    return folder


def test_classes_go_by_their_names(tmp_path: Path) -> None:
    text, names = datasets.Value("string"), ["contradiction", "entailment", "neutral"]
    features = {"premise": text, "hypothesis": text, "label": datasets.ClassLabel(names=names)}
    make(tmp_path, features, premise=["a", "b", "c"], hypothesis=["x", "y", "z"], label=[0, 1, 2])
    assert [row.label for row in load_task(task("MNLI", tmp_path), "train", 0)] == [2.0, 0.0, 1.0]
    make(tmp_path, premise=["a", "b"], hypothesis=["x", "y"], label=["neutral", "entailment"])
    assert [row.label for row in load_task(task("MNLI", tmp_path), "train", 0)] == [1.0, 0.0]
    features["label"] = datasets.ClassLabel(names=["yes", "no", "maybe"])
    make(tmp_path, features, premise=["a"], hypothesis=["x"], label=[0])
    assert "has the classes yes, no, maybe, but those of MNLI are entailment, neutral," in fault(task("MNLI", tmp_path))


def test_what_is_wrong_with_a_row_names_it(tmp_path: Path) -> None:
    given = task("RTE", tmp_path)
    where = f"task.train_file: {tmp_path} split train row 2"
    make(tmp_path, sentence1=["a", "b"], sentence2=["x", "y"], label=[0, -1])
    assert fault(given) == f"{where} has the label -1; RTE allows one of entailment, not_entailment"
    make(tmp_path, sentence1=["a", "b"], sentence2=["x", None], label=[0, 1])
    assert fault(given).startswith(f"{where} has an empty sentence")
    make(tmp_path, question1=["a", "b"], question2=["x", None], label=[0, 1])
    rows, broken = read_task(task("QQP", tmp_path), "train", 0)
    assert (len(rows), broken) == (1, 1)
    make(tmp_path, sentence1=["a", "b"], sentence2=["x", "y"], idx=[0, 5])
    tested = task("RTE", tmp_path, test_file="train")
    assert "row 2 has the index 5, but it is row 1" in fault(tested, "test")


def test_columns_splits_and_names_that_are_not_there(tmp_path: Path) -> None:
    given = task("RTE", make(tmp_path / "a", question=["a"], sentence2=["x"], label=[0]))
    assert "has no column of text 'sentence1' but question, sentence2, label; RTE has sentence1," in fault(given)
    assert "has no column 'label' but sentence1" in fault(
        task("RTE", make(tmp_path / "b", sentence1=["a"], sentence2=["x"]))
    )
    numbers = make(tmp_path / "c", sentence1=[1], sentence2=["x"], label=[0])
    assert "has no column of text 'sentence1'" in fault(task("RTE", numbers))
    words = f"task.dev_file is 'dev.tsv', but the data set in task.path={given.path} has no split 'validation'"
    with pytest.raises(UserError, match=words):
        check_task(given)
    with pytest.raises(UserError, match=r"task.dev_file is 'train', the same file as task.train_file"):
        check_task(task("RTE", given.path, dev_file="train"))
    for path in ("datasets:mrpc", "datasets:a/b/c/d", "datasets:"):
        with pytest.raises(UserError, match=rf"task.path is '{path}', which names no data set with its configuration"):
            check_task(task("MRPC", path))
    (tmp_path / "a" / "train.parquet").write_bytes(b"PAR1 and no more")
    assert f"task.path is '{given.path}', whose split 'train' cannot be read: " in fault(given)


def test_a_hub_name_offline_is_one_sentence_that_says_so(tmp_path: Path) -> None:
    program = (
        "from refbert_dist.config import TaskConfig\n"
        "from refbert_dist.data.tasks import check_task, load_task\n"
        "from refbert_dist.errors import UserError\n"
        "import sys\n"
        "task = TaskConfig(name='MRPC', path='datasets:nobody/nothing/mrpc')\n"
        "check_task(task)\n"
        "assert 'datasets' not in sys.modules\n"
        "try: load_task(task, 'dev', 0)\n"
        "except UserError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "task.path is 'datasets:nobody/nothing/mrpc', whose split 'validation' cannot be read" in done.stdout
    assert "HF_HUB_OFFLINE is set" in done.stdout
