"""``refbert run`` of a table: real cells on small data, stopped between two of them, continued, and extended."""

import contextlib
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tables import fabricate, finish, table_file

import launchers.table
from launchers.cluster import launch
from launchers.execute import execute
from launchers.options import Where
from launchers.profile import SlurmProfile
from refbert_dist import pipeline
from refbert_dist.artifacts import make_folder
from refbert_dist.config.schema import RunConfig
from refbert_dist.errors import RefusedError, StoppedError
from refbert_dist.rundir import LOCK
from refbert_dist.table import run
from refbert_dist.table.choice import all_cells, choice_of, decide
from refbert_dist.table.config import Cell, Table, load_table
from refbert_dist.table.rows import read_rows

Refbert = Callable[..., tuple[int, str, str]]
STEPS = {name: {"steps": 2, "batch_size": 12} for name in ("general", "intermediate", "prediction")}


class Place:
    """A table file, and what happened to its table so far."""

    def __init__(self, root: Path, refbert: Refbert, monkeypatch: pytest.MonkeyPatch) -> None:
        values = yaml.safe_load(table_file(root).read_text())
        values["experiment"] |= {"distill": STEPS, "evaluate": {"latency_repeats": 0}}
        values["experiment"]["corpus"]["max_documents"] = 4
        self.file, self.run_dir, self.csv = root / "small.yaml", root / "run", root / "run" / "table.csv"
        self.file.write_text(yaml.safe_dump(values))
        self.ran: list[str] = []
        self.fails: dict[str, Exception] = {}
        self._refbert = refbert
        monkeypatch.setattr(launchers.table, "execute", self._execute)

    def _execute(self, exp: Any, targets: Any, where: Any) -> bool:
        self.ran.append(exp.run.dir.name)
        if error := self.fails.get(exp.run.dir.name):
            raise error
        return execute(exp, targets, where)

    def run(self, *overrides: str) -> tuple[int, str, str]:
        """Run the table in this process; ``ran`` are the cells that were begun."""
        self.ran.clear()
        return self._refbert("run", self.file, "--on", "in-process", *overrides)

    def rows(self) -> list[tuple[str, int]]:
        """System and seed of the rows, for the first metric."""
        return [(row.system, row.seed) for row in read_rows(self.csv) if row.metric == "accuracy"]


@pytest.fixture
def place(tmp_path: Path, refbert: Refbert, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield Place(tmp_path, refbert, monkeypatch)


def test_a_table_goes_on_where_it_was_stopped_and_grows(place: Place, refbert: Refbert) -> None:
    one = ("systems=[refbert]",)
    place.fails["MRPC-seed1"] = StoppedError("stopped; run the same command again to continue")
    code, _, err = place.run(*one)
    assert code == 75 and err.splitlines()[-1].startswith("refbert: stopped"), err
    first = place.run_dir / "cells" / "MRPC-seed0"
    shared = [("teacher", 1), ("refbert", 0), ("knn", 1)]
    assert sorted(place.rows()) == sorted(shared)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    statuses = json.loads(refbert("status", place.run_dir, "--json")[1])
    assert statuses["state"] == "to run"
    assert [(cell["cell"], cell["state"]) for cell in statuses["cells"]] == [
        *(("MRPC-seed0", "done"), ("MRPC-seed1", "to run"))
    ]

    place.fails.clear()
    code, out, err = place.run(*one)
    assert code == 0, err
    assert place.ran == ["MRPC-seed1"]
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    stages = {path.stem for path in (place.run_dir / "cells" / "MRPC-seed1" / "stages").iterdir()}
    assert stages == {"distill-task", "evaluate"}
    assert "## Scores" in out and "2 of 2 cells are done" in out
    assert place.rows()[len(shared) :] == [("refbert", 1)]

    kept = place.csv.read_bytes()
    code, again, _ = place.run(*one)
    assert (code, again, place.ran, place.csv.read_bytes()) == (0, out, [], kept)

    code, out, err = place.run("seeds={refbert: 3, default: 2}")
    assert code == 0, err
    assert place.ran == ["MRPC-seed0", "MRPC-seed1", "MRPC-seed2"]
    assert place.csv.read_bytes().startswith(kept)
    assert place.rows()[len(shared) + 1 :] == [("tinybert", 0), ("tinybert", 1), ("refbert", 2)]
    trained = first / "models" / "prediction-refbert" / "model.safetensors"
    assert trained.stat().st_mtime_ns == before[trained]
    assert "RefBERT k=2 against TinyBERT" in out and "3 of 3 cells are done" in out
    _rows_tell_the_budget(place)

    varied = ("variants={one: {references.count: 1}}", "seeds={refbert: 3, one: [1], default: 2}")
    code, out, err = place.run(*varied)
    assert code == 0, err
    assert place.ran == ["MRPC-seed1-one"]
    assert place.rows()[len(shared) + 4 :] == [("refbert:one", 1)]
    assert "| RefBERT k=1, one |" in out

    code, out, _ = refbert("status", place.run_dir)
    assert code == 0 and "done, 4 of 4 cells done" in out
    (place.run_dir / "report.html").unlink()
    assert refbert("report", place.run_dir) == (0, f"{place.run_dir / 'report.html'}\n", "")
    assert (place.run_dir / "report.html").exists()


def _rows_tell_the_budget(place: Place) -> None:
    rows = {(row.system, row.seed): row for row in read_rows(place.csv)}
    tinybert, refbert, teacher = rows["tinybert", 0], rows["refbert", 2], rows["teacher", 1]
    assert (tinybert.steps, tinybert.samples) == (refbert.steps, refbert.samples) == (6, 72)
    assert (teacher.steps, teacher.samples, teacher.train) == (4, 60, 60)
    assert 0 < (tinybert.gflop or 0) < (refbert.gflop or 0)
    assert len({row.settings for row in rows.values()}) == len({row.data for row in rows.values()}) == 1


def test_rates_are_chosen_before_anything_is_scored_on_dev(place: Place, refbert: Refbert) -> None:
    given = ("choose={rates: [1, 8], held_out: 0.2}", "seeds=1", "csv=null")
    place.fails["MRPC-x8-seed0"] = RefusedError("something is wrong")
    code, out, err = place.run(*given)
    assert code == 1 and place.ran == ["MRPC-x1-seed0", "MRPC-x8-seed0"]
    assert "cell 2 of 2 held out: MRPC-x8-seed0, refbert, tinybert" in err
    assert "MRPC-x8-seed0 is not done: something is wrong" in err
    assert f"the rates for MRPC are not chosen yet: see {place.run_dir / 'choice'}" in out and "no cell is done" in out
    statuses = json.loads(refbert("status", place.run_dir, "--json")[1])
    assert [cell["state"] for cell in statuses["cells"]] == ["done", "to run", "to run"]

    place.fails.clear()
    code, out, err = place.run(*given)
    assert code == 0, err
    assert place.ran == ["MRPC-x8-seed0", "MRPC-seed0"]
    assert "## Rates" in out and "1 of 1 cells are done" in out
    rows = read_rows(place.csv)
    assert {(row.title, row.task) for row in rows} == {
        *(("small, held out", "MRPC-x1"), ("small, held out", "MRPC-x8"), ("small", "MRPC"))
    }
    assert {(row.task == "MRPC", row.n) for row in rows} == {(False, 12), (True, 200)}
    for system in ("refbert", "tinybert"):
        means = {
            factor: sum(row.score for row in rows if (row.task, row.system) == (f"MRPC-x{factor}", system))
            for factor in (1, 8)
        }
        own = yaml.safe_load((place.run_dir / "cells" / "MRPC-seed0" / "experiment.yaml").read_text())["distill"]
        assert own["rate_factors"].get(system, 1) == max(means, key=lambda factor: means[factor])
    assert place.run(*given)[0] == 0 and place.ran == []
    assert "done, 3 of 3 cells done" in refbert("status", place.run_dir)[1]
    assert "2 cells" in (place.run_dir / "choice" / "report.html").read_text(encoding="utf-8")

    code, out, _ = place.run(*given, "--dry-run", "seeds=2")
    assert code == 0 and "2 cells in" in out and "MRPC-seed1" in out


@pytest.mark.parametrize("stays", [True, False])
def test_jobs_of_final_cells_wait_for_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool) -> None:
    table = load_table(table_file(tmp_path, choose={"rates": [1, 2], "held_out": 0.2}, seeds=1))
    for each in (choice_of(table), table):
        assert each
        prepared(each, tmp_path)
    submitted: list[str] = []

    def wait(exp: Any, targets: Any) -> None:
        finish(next(cell for cell in all_cells(decide(table)) if cell.experiment.run.dir == exp.run.dir))

    monkeypatch.setattr(launch, "launch", lambda exp, *_: submitted.append(exp.run.dir.name))
    monkeypatch.setattr(launch, "wait", wait)
    work = launchers.table._Work(table)
    launchers.table._submit(work, SlurmProfile(cluster="slurm"), Where("slurm", wait=stays))
    held_out = ["MRPC-x1-seed0", "MRPC-x2-seed0"]
    assert submitted == [*held_out, *(["MRPC-seed0"] if stays else [])]
    assert work.table.undecided == (() if stays else ("MRPC",)) and not work.refused


def test_a_cell_that_fails_leaves_the_other_tasks_to_be_run(place: Place) -> None:
    tasks = "tasks={MRPC: {}, short: {task.name: MRPC, task.max_train: 20}}"
    place.fails["MRPC-seed0"] = RefusedError("the teacher does not know the task")
    place.fails["short-seed0"] = place.fails["short-seed1"] = RefusedError("something else")
    code, out, err = place.run(tasks)
    assert code == 1
    assert place.ran == ["MRPC-seed0", "short-seed0"]
    assert "MRPC-seed0 is not done: the teacher does not know the task; short-seed0 is not done" in err
    assert "no cell is done" in out and "0 of 4 cells are done" in out


@contextlib.contextmanager
def at_work(cells: Sequence[Cell]) -> Iterator[None]:
    """Hold the locks of cells, as a command does that runs them."""
    with contextlib.ExitStack() as held:
        for cell in cells:
            make_folder(cell.experiment.run.dir)
            lock = held.enter_context((cell.experiment.run.dir / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_cells_that_others_are_at_work_on_are_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_table(place.file)
    run.begin(table)
    prepared(table, place.run_dir.parent)
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with at_work(table.cells):
            begun.set()
            ended.wait(60)
            for cell in table.cells:
                finish(cell)

    # What the command does instead of sleeping, once it waits: the user stops it; the other ends.
    naps = iter([lambda: os.kill(os.getpid(), signal.SIGINT), ended.set])

    def nap(_: float) -> None:
        next(naps, lambda: thread.join(0.1))()

    monkeypatch.setattr(launchers.table, "time", SimpleNamespace(sleep=nap))
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    code, _, err = place.run()
    assert code == 75 and "waiting for MRPC-seed0, MRPC-seed1, where another command is at work" in err
    code, out, err = place.run()
    assert "waiting for" in err
    thread.join()
    assert (code, place.ran) == (0, []) and "2 of 2 cells are done" in out
    assert len(place.rows()) == 5


def prepared(table: Table, root: Path) -> None:
    for task, exp in table.experiments.items():
        pipeline.run(exp.model_copy(update={"run": RunConfig(dir=root / f"for-{task}")}), ["prepare"])


TWO_TASKS = {"MRPC": {}, "short": {"task.name": "MRPC", "task.max_train": 20}}


def test_a_cell_waits_for_what_another_one_makes(tmp_path: Path) -> None:
    path = table_file(tmp_path, tasks=TWO_TASKS)
    table = load_table(path, ["corpus=null", f"cache.dir={tmp_path / 'cache'}"])
    first, other_task, _, _ = table.cells
    assert run.next_cell(table.cells) == (first, run.TARGETS)
    with at_work([first]):
        # The tokens of dev are for both tasks.
        assert run.under_way(table.cells) == [first] and run.next_cell(table.cells) is None
        prepared(table, tmp_path)
        assert run.next_cell(table.cells) == (other_task, run.TARGETS)
        with at_work([other_task]):
            # The teacher of each task is not fine-tuned yet.
            assert run.next_cell(table.cells) is None
    assert run.next_cell(table.cells) == (first, run.TARGETS)


def test_what_is_a_tasks_own_is_made_while_another_command_makes_what_all_share(
    place: Place, monkeypatch: pytest.MonkeyPatch, refbert: Refbert
) -> None:
    given = (f"tasks={json.dumps(TWO_TASKS)}", "seeds=1", "systems=[refbert]", f"cache.dir={place.run_dir / 'cache'}")
    table = load_table(place.file, given)
    first, other_task = table.cells
    run.begin(table)
    with at_work([first]):
        prepared(table, place.run_dir)
        # The student of the general stage is for both tasks.
        assert run.next_cell(table.cells) == (other_task, run.AHEAD)
        with at_work([other_task]):
            assert run.next_cell(table.cells) is None

    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with at_work([first]):
            begun.set()
            ended.wait(60)

    def nap(_: float) -> None:
        ended.set()
        thread.join()

    monkeypatch.setattr(launchers.table, "time", SimpleNamespace(sleep=nap))
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    code, out, err = place.run(*given)
    assert code == 0, err
    assert place.ran == ["short-seed0", "MRPC-seed0", "short-seed0"] and "2 of 2 cells are done" in out
    assert "cell 2 of 2: short-seed0, ahead of its turn: teacher and states" in err and "waiting for MRPC-seed0" in err
    order = [line for line in err.splitlines() if line.startswith(("[", "waiting", "cell"))]
    ahead = order[1 : next(number for number, line in enumerate(order) if line.startswith("waiting"))]
    assert [line.split()[1] for line in ahead] == ["finetune:", "cache-task:"]


def test_another_score_in_the_file_is_told_and_kept(tmp_path: Path, refbert: Refbert) -> None:
    table = fabricate(table_file(tmp_path))
    text = table.csv_path.read_text()
    row = next(row for row in read_rows(table.csv_path) if row.system == "tinybert")
    changed = text.replace(f",tinybert,0,{row.metric},{row.score},", f",tinybert,0,{row.metric},0.123,")
    table.csv_path.write_text(changed)
    code, out, err = refbert("run", tmp_path / "small.yaml")
    assert code == 1 and "## Scores" in out
    assert f"{row.metric} of tinybert on MRPC, seed 0: 0.123 stands there" in err and "remove such rows" in err
    assert table.csv_path.read_text() == changed


def test_a_dry_run_says_what_is_left_and_what_is_shared(place: Place, refbert: Refbert, tmp_path: Path) -> None:
    tasks = {"tasks": {"MRPC": {}, "short": {"task.name": "MRPC", "task.max_train": 20}}}
    given = ("--dry-run", f"tasks={json.dumps(tasks['tasks'])}", f"cache.dir={tmp_path / 'cache'}")
    code, out, err = place.run(*given)
    assert code == 0, err
    assert place.ran == [] and not place.run_dir.exists() and not (tmp_path / "cache").exists()
    words = " ".join(out[out.index("cells in") :].split())
    assert "MRPC-seed0 refbert, tinybert prepare, retrieve, cache-general" in words
    # Students of the general stage serve both tasks; the task's teacher serves all its seeds.
    short = words[words.index("short-seed0") : words.index("MRPC-seed1")]
    assert "finetune" in short and "general" not in short
    assert words[words.index("MRPC-seed1") : words.index("short-seed1")].count("finetune") == 0
    assert "title: small" in out


def test_wrong_tables_stop_before_anything_is_written(place: Place) -> None:
    code, _, err = place.run("tasks.MRPC.task.path=/no/such/folder")
    assert code == 2 and "tasks.MRPC: task.path is '/no/such/folder'" in err
    assert not place.run_dir.exists() and "Traceback" not in err


def test_cells_of_other_settings_are_refused(tmp_path: Path, refbert: Refbert) -> None:
    fabricate(table_file(tmp_path))
    code, _, err = refbert("run", tmp_path / "small.yaml", "student.layers=1", "title=other")
    assert code == 2 and "MRPC-seed0' holds another experiment: student.layers is 2 there and 1 here" in err


def test_commands_for_one_run_name_those_of_a_table(tmp_path: Path, refbert: Refbert) -> None:
    table = fabricate(table_file(tmp_path))
    for command in ("logs", "resume", "sync"):
        code, _, err = refbert(command, table.run_dir)
        assert code == 2 and f"is the directory of a table; name one of its runs, in {table.run_dir}/cells" in err
    code, out, _ = refbert("cancel", table.run_dir)
    assert code == 0 and out.count("nothing to cancel") == len(load_table(tmp_path / "small.yaml").cells)
