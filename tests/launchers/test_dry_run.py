"""The dry run of the experiment for clusters: sizes and times without the hub, a GPU or torch."""

import subprocess
import sys
from pathlib import Path

import datasets
import glue_layouts
import pytest

ROOT = Path(__file__).parents[2]
DRY_RUN = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("the network was touched")
socket.create_connection = socket.socket.connect = socket.getaddrinfo = refuse
from launchers import cli
sys.argv = ["refbert", "run", *sys.argv[1:], "--dry-run"]
try:
    cli.main()
finally:
    heavy = "torch transformers datasets deepspeed mlflow bm25s faiss sklearn scipy pandas".split()
    assert not [name for name in heavy if name in sys.modules]
"""


def dry_run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    return f"run.dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"


def row(output: str, stage: str, number: int = 0) -> list[str]:
    lines = [line.split() for line in output.splitlines() if line.split()[:1] == [stage]]
    return lines[number]


def test_the_wikipedia_experiment_is_planned_out_of_reach_of_everything(
    tmp_path: Path, places: tuple[str, str]
) -> None:
    out = dry_run(ROOT / "configs" / "wikipedia-bert-base.yaml", *places)
    assert row(out, "stage", 1)[1:] == ["unit", "8", "GPUs", "64", "GPUs", "256", "GPUs"]
    assert row(out, "prepare")[1:] == ["to", "run", "26.3", "M", "3.25", "B", "23.4", "GB", "9,300"]
    assert row(out, "cache-general")[-3:] == ["49.4", "GB", "978"]
    for stage in ("prepare", "retrieve"):
        assert row(out, stage, 1)[1] == "core-h"
    for stage in ("cache-general", "distill-general"):
        assert row(out, stage, 1)[1] == "GPU-h"
    assert "bert-base-uncased, 12 layers x 768, 109 M weights; a shape known by its name" in out
    assert "assumed, not measured" in out
    assert "GB of memory for each process" in out
    assert list(tmp_path.iterdir()) == []


def test_tinyberts_recipe_is_planned_with_its_padding(places: tuple[str, str]) -> None:
    config = ROOT / "configs" / "tinybert-4l-312.yaml"
    out = dry_run(config, *places)
    assert row(out, "distill-general")[1:3] == ["to", "run"]
    assert not [line for line in out.splitlines() if line.split()[:1] in (["retrieve"], ["cache-general"])]
    assert row(out, "distill-general")[-2:] == ["10.1", "B"]
    assert row(dry_run(config, *places, "distill.padding=ignored"), "distill-general")[-2:] == ["9.75", "B"]
    with_task = dry_run(config, *places, "task.name=same-topic", "task.path=builtin:python-docs")
    assert row(with_task, "distill-task")[1:3] == ["to", "run"]


def test_a_small_experiment_is_planned_for_this_machine(places: tuple[str, str]) -> None:
    out = dry_run(ROOT / "configs" / "demo.yaml", *places)
    assert "this machine" in out and "GPUs" not in out
    assert "measured on a core of" in out
    clock = row(out, "distill-general", 1)[-2:]
    assert float(clock[0]) > 0 and clock[1] in ("s", "min")


def test_a_profile_can_be_asked_for(places: tuple[str, str]) -> None:
    demo = ROOT / "configs" / "demo.yaml"
    assert "  profile: true\n" in dry_run(demo, *places, "--profile")
    assert "  profile: false\n" in dry_run(demo, *places)


def test_a_corpus_of_unknown_size_is_said_to_be_one(tmp_path: Path, places: tuple[str, str]) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text("teacher: {model: bert-base-uncased}\ncorpus: {path: somebody/text}\n")
    out = dry_run(path, *places)
    assert "nothing is known of its size before it is prepared; set corpus.expected_tokens" in out


def test_a_real_run_says_what_it_lacks(tmp_path: Path, places: tuple[str, str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text of eight words is enough here.")
    program = "from launchers import cli; import sys; sys.argv[0] = 'refbert'; cli.main()"
    overrides = [f"corpus.path={text}", "tracking.mlflow=false", "launch.processes=1", *places]
    config = ROOT / "configs" / "wikipedia-bert-base.yaml"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(config), *overrides],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "teacher.model is 'bert-base-uncased': its tokenizer cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_in_parquet_is_planned_without_the_library_that_reads_it(
    tmp_path: Path, places: tuple[str, str]
) -> None:
    datasets.disable_progress_bars()
    for split, rows in glue_layouts.data_sets("MRPC").items():
        rows.to_parquet(tmp_path / "mrpc" / f"{split}.parquet")  # type: ignore[attr-defined]
    path = tmp_path / "exp.yaml"
    path.write_text(f"teacher: {{model: bert-base-uncased}}\ntask: {{name: MRPC, path: {tmp_path / 'mrpc'}}}\n")
    out = dry_run(path, *places, "task.test_file=test")
    for part in ("train", "dev", "test"):
        assert f"{part}: nothing is known of its size before it is prepared\n" in out
    assert row(out, "submission")[1:3] == ["not", "needed"]
    assert "task.test_file is 'tests'" in dry_run(path, *places, "task.test_file=tests", code=2)
