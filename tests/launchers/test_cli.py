"""What a person at the command line sees: plans, results, and one sentence for every wrong input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import tiny_task, tiny_teacher, tiny_values

from launchers import cli
from refbert_dist.data.builtin import python_docs_documents

Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    values = tiny_values(root)
    values["systems"] = ["refbert"]
    values["launch"] = {"processes": 2, "threads": 1}
    (root / "exp.yaml").write_text(yaml.safe_dump(values))
    return root


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """A whole run by the command itself: every stage in processes of its own, two where they share the work."""
    subprocess.run([sys.executable, "-m", "launchers.cli", "run", str(root / "exp.yaml")], check=True, cwd=root)
    return root / "run"


def assert_one_sentence(answer: tuple[int, str, str], *words: str, code: int = 2) -> None:
    assert answer[0] == code, answer
    last = answer[2].strip().splitlines()[-1]
    assert last.startswith("refbert: ")
    assert "Traceback" not in answer[2]
    for word in words:
        assert word in last, last


# -- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.dist
def test_a_run_ends_with_table_and_paths_and_then_has_nothing_to_do(
    finished: Path, root: Path, refbert: Refbert
) -> None:
    code, out, err = refbert("run", root / "exp.yaml")
    assert code == 0, err
    assert "nothing to do" in out
    assert "RefBERT k=2" in out and "teacher" in out
    assert str(finished / "export") in out.replace("\n", "")
    stages = {path.stem: json.loads(path.read_text())["processes"] for path in (finished / "stages").iterdir()}
    assert {name: count for name, count in stages.items() if count != 2} == {"evaluate": 1, "export": 1}
    provenance = json.loads((finished / "provenance.json").read_text())
    assert "deepspeed" in json.dumps(provenance)


@pytest.mark.dist
def test_predict_answers_line_by_line(finished: Path, tmp_path: Path, refbert: Refbert) -> None:
    code, out, err = refbert("predict", finished / "export", stdin="one passage\tanother\nemoji 🎉\tünïcode\n")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["label"] in (0, 1) for answer in answers] == [True, True]
    assert abs(sum(answers[0]["probabilities"]) - 1) < 1e-5
    lines = tmp_path / "lines.txt"
    lines.write_text("one passage\tanother\nemoji 🎉\tünïcode\n")
    assert refbert("predict", finished / "export", lines)[:2] == (0, out)
    assert_one_sentence(
        refbert("predict", finished / "export", tmp_path / "none"), "none cannot be read", "give a file"
    )


@pytest.mark.dist
def test_verify_is_quiet_on_a_whole_cache_and_names_a_damaged_shard(
    finished: Path, root: Path, refbert: Refbert
) -> None:
    assert refbert("cache", "verify", root / "exp.yaml", "--full")[0] == 0
    (teacher, *_) = sorted((root / "cache" / "teacher").iterdir())
    shard = next(iter(teacher.glob("shard-00001.*.safetensors")))
    original = shard.read_bytes()
    try:
        shard.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert refbert("cache", "verify", root / "exp.yaml")[0] == 0  # the size is right
        code, out, err = refbert("cache", "verify", root / "exp.yaml", "--full")
        assert code == 1
        assert out.count("shard-00001:") == 1 and "shard-00000:" not in out
        assert "1 damaged shard" in err
    finally:
        shard.write_bytes(original)


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path, root: Path, refbert: Refbert) -> None:
    code, out, err = refbert(
        "run", root / "exp.yaml", f"run.dir={tmp_path / 'r'}", f"cache.dir={tmp_path / 'c'}", "--dry-run"
    )
    assert code == 0, err
    assert "intermediate: 48" in out  # the resolved configuration
    for stage in ("prepare", "cache-general", "distill-task", "export"):
        assert stage in out
    assert "to run" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["prepare"],
        ["retrieve"],
        ["cache", "build"],
        ["finetune"],
        ["distill", "general"],
        ["distill", "task"],
        ["evaluate"],
        ["export"],
    ],
)
def test_every_stage_has_a_dry_run(command: list[str], tmp_path: Path, root: Path, refbert: Refbert) -> None:
    code, out, err = refbert(
        *command, root / "exp.yaml", f"run.dir={tmp_path / 'r'}", f"cache.dir={tmp_path / 'c'}", "--dry-run"
    )
    assert code == 0, err
    assert "to run" in out
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_the_file_in_configs(refbert: Refbert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repository = Path(__file__).parents[2]
    assert cli.DEMO.read_bytes() == (repository / "configs" / "demo.yaml").read_bytes()
    assert refbert("demo", "--dry-run")[0] == 0


def test_help_lists_the_commands(refbert: Refbert) -> None:
    code, out, _ = refbert("--help")
    assert code == 0
    for command in (
        "run",
        "demo",
        "prepare",
        "retrieve",
        "cache",
        "finetune",
        "distill",
        "evaluate",
        "export",
        "predict",
    ):
        assert command in out


def test_doctor_finds_nothing_missing_here(refbert: Refbert) -> None:
    code, out, _ = refbert("doctor")
    assert code == 0 and "deepspeed" in out and "MISSING" not in out


def test_a_profile_sets_processes(tmp_path: Path, root: Path, refbert: Refbert) -> None:
    profile = tmp_path / "big.yaml"
    profile.write_text("processes: 7\n")
    code, out, err = refbert("run", root / "exp.yaml", "--on", profile, "--dry-run", f"run.dir={tmp_path / 'r'}")
    assert code == 0, err
    assert " 7 " in out


# -- what is wrong with the input ------------------------------------------------------------------------------------


@pytest.fixture
def wrong(root: Path, tmp_path: Path, refbert: Refbert) -> Callable[..., tuple[int, str, str]]:
    """Run all stages with overrides, in directories of their own."""

    def run(*overrides: str, command: tuple[str, ...] = ("run",)) -> tuple[int, str, str]:
        return refbert(
            *command, root / "exp.yaml", f"run.dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}", *overrides
        )

    return run


Wrong = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student.layers=0"], ["student.layers", "0"]),
        (["student.layesr=3"], ["student.layesr", "did you mean 'layers'"]),
        (["student.layers=two"], ["student.layers", "'two'"]),
        (["student.hidden=50"], ["student.hidden is 50", "student.hidden=48"]),
        (["corpus.max_length=97"], ["corpus.max_length is 97", "96 positions", "corpus.max_length=96"]),
        (["task.max_length=400"], ["task.max_length is 400", "96"]),
        (["corpus.path=/no/such/file.txt"], ["corpus.path", "/no/such/file.txt"]),
        (["task.path=/no/such/folder"], ["task.path", "/no/such/folder"]),
        (["task.train_file=other.tsv"], ["task.train_file", "other.tsv"]),
        (["task.name=MRCP"], ["task.name", "did you mean 'MRPC'"]),
        (["teacher.model=/no/such/teacher"], ["teacher.model", "/no/such/teacher"]),
        (["teacher.model=package:no_such_package_here"], ["teacher.model", "not installed"]),
        (["references.value_layer=9"], ["references.value_layer is 9", "4 layers"]),
        (["distill.layer_map=[1,9]"], ["distill.layer_map names layer 9", "layers 1 to 4"]),
        (["distill.layer_map=[1,0]"], ["distill.layer_map.1 is 0", "greater than 0"]),
        (["distill.layer_map=[1,2,3]"], ["distill.layer_map names 3", "student.layers is 2"]),
        (["engine.zero_stage=4"], ["engine.zero_stage is 4", "0, 1, 2 or 3"]),
        (["cache.layers=[8]"], ["cache.layers", "8"]),
        (["tracking.mlflow=true", "tracking.mlflow_uri=gopher://x"], ["tracking.mlflow_uri", "gopher://x"]),
    ],
)
def test_bad_settings_stop_before_anything_is_written(
    wrong: Wrong, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    assert_one_sentence(wrong(*overrides), *words)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_experiment_files(tmp_path: Path, refbert: Refbert) -> None:
    assert_one_sentence(refbert("run", tmp_path / "none.yaml"), "none.yaml", "does not exist")
    broken = tmp_path / "broken.yaml"
    broken.write_text("student: {layers: [\n")
    assert_one_sentence(refbert("run", broken), "broken.yaml", "not valid YAML", "line")


def test_profiles_that_do_not_exist_or_are_wrong(root: Path, tmp_path: Path, refbert: Refbert) -> None:
    assert_one_sentence(refbert("run", root / "exp.yaml", "--on", "lokal"), "--on is 'lokal'", "did you mean 'local'")
    profile = tmp_path / "p.yaml"
    profile.write_text("procesess: 2\n")
    assert_one_sentence(refbert("run", root / "exp.yaml", "--on", profile), "procesess", "did you mean 'processes'")


@pytest.mark.parametrize("lacking", ["tokenizer", "weights", "config"])
def test_a_teacher_folder_that_is_not_whole(wrong: Wrong, tmp_path: Path, lacking: str) -> None:
    folder = tiny_teacher(tmp_path / "teacher")
    files = {"tokenizer": "tokenizer.json", "weights": "model.safetensors", "config": "config.json"}
    (folder / files[lacking]).unlink()
    assert_one_sentence(
        wrong(f"teacher.model={folder}"), "teacher.model", lacking if lacking != "config" else "config.json"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["corpus.path", "no text"]),
        (b"good line\n\nbad \xff line\n", ["line 3", "UTF-8"]),
    ],
)
def test_corpora_that_cannot_be_read(wrong: Wrong, tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    answer = wrong(f"corpus.path={path}", "task=null", "--on", "in-process", command=("prepare",))
    assert_one_sentence(answer, *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7\t1\t1\tfirst\tsecond", ["train.tsv", "line 2", "label '7'"]),
        ("1\t1\t1\tonly one sentence", ["train.tsv", "line 2", "4 tab-separated columns, not 5"]),
    ],
)
def test_task_rows_that_are_wrong(wrong: Wrong, tmp_path: Path, line: str, words: list[str]) -> None:
    folder = tiny_task(tmp_path / "task")
    (folder / "train.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{line}\n")
    answer = wrong(f"task.path={folder}", "corpus=null", "--on", "in-process", command=("prepare",))
    assert_one_sentence(answer, *words)


def test_fewer_samples_than_processes(wrong: Wrong, tmp_path: Path) -> None:
    folder = tiny_task(tmp_path / "task", train=1, dev=1)
    settings = (f"task.path={folder}", "corpus=null", "references.count=0")
    assert wrong(*settings, "--on", "in-process", command=("prepare",))[0] == 0
    answer = wrong(*settings, command=("finetune",))
    assert_one_sentence(answer, "launch.processes is 2", "1 sample")


@pytest.mark.faults
def test_no_space_on_disk(wrong: Wrong, small_disk: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("\n\n".join([*python_docs_documents()] * 4))
    cache = f"cache.dir={small_disk / 'cache'}"
    answer = wrong(f"corpus.path={text}", "corpus.max_documents=null", "task=null", cache, command=("prepare",))
    assert_one_sentence(answer, f"cannot write in {small_disk}", "no space left", "cache.dir")
    assert not list((small_disk / "cache").rglob("manifest.json"))
    shutil.rmtree(small_disk / "cache")
    second = f"run.dir={tmp_path / 'second'}"
    answer = wrong("task=null", cache, second, "launch.processes=1", command=("cache", "build"))
    assert_one_sentence(answer, "the teacher cache needs", "are free", "cache.dir")


def test_nothing_to_verify(wrong: Wrong) -> None:
    assert_one_sentence(wrong(command=("cache", "verify")), "cache build", code=1)


def test_a_command_whose_section_is_missing(wrong: Wrong) -> None:
    assert_one_sentence(wrong("task=null", command=("finetune",)), "task section")


@pytest.mark.dist
def test_a_submission_without_test_rows(wrong: Wrong, tmp_path: Path) -> None:
    answer = wrong(command=("evaluate", "--submission"))
    assert_one_sentence(answer, "task.test_file is null", "set task.test_file=test.tsv")
    assert list(tmp_path.iterdir()) == []


def test_predict_without_a_model_or_with_odd_lines(finished: Path, tmp_path: Path, refbert: Refbert) -> None:
    assert_one_sentence(refbert("predict", tmp_path), str(tmp_path), "manifest.json")
    export = finished / "export"
    assert_one_sentence(refbert("predict", export, stdin="a\tb\tc\n"), "line 1", "3 tab-separated")
    assert_one_sentence(refbert("predict", export, stdin="a\tb\nonly one\n"), "line 2")
    assert_one_sentence(refbert("predict", export, stdin="a\tb\n\n"), "line 2")
    assert_one_sentence(refbert("predict", export, stdin=b"a\tb \xff\n"), "UTF-8")
    assert refbert("predict", export, stdin="")[:2] == (0, "")


@pytest.mark.dist
def test_predict_refuses_a_damaged_bank(finished: Path, tmp_path: Path, refbert: Refbert) -> None:
    folder = tmp_path / "export"
    shutil.copytree(finished / "export", folder)
    states = folder / "bank" / "states-0-0.safetensors"
    states.write_bytes(states.read_bytes()[:-1])
    assert_one_sentence(refbert("predict", folder, stdin="a\tb\n"), "bank", states.name, code=1)
    shutil.rmtree(folder / "bank")
    assert_one_sentence(refbert("predict", folder, stdin="a\tb\n"), "no reference bank", "references=0")
    code, out, err = refbert("predict", folder, "--references", "0", stdin="a\tb\n")
    assert code == 0 and json.loads(out).keys() == {"label", "name", "probabilities"}, err


@pytest.mark.dist
def test_what_mlflow_lacks_is_copied_later(tmp_path: Path, finished: Path, refbert: Refbert) -> None:
    run_dir = tmp_path / "moved"
    shutil.copytree(finished, run_dir)
    code, out, err = refbert("sync", run_dir, "--dry-run")
    assert code == 0 and "would copy" in out and not (run_dir / "mlflow.db").exists(), err
    code, out, err = refbert("sync", run_dir)
    assert code == 0 and int(out.split()[0]) > 10 and (run_dir / "mlflow.db").exists(), err
    assert refbert("sync", run_dir)[1].startswith("0 records")
    assert_one_sentence(refbert("sync", tmp_path), "is not a run directory", "experiment.yaml")
