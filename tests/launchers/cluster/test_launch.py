"""Chains beside each other: what one makes, the others wait for."""

from pathlib import Path

from tables import table_file

from launchers.cluster.chain import links
from launchers.cluster.launch import made_by_others
from launchers.cluster.records import Submission
from launchers.profile import SlurmProfile
from refbert_dist import pipeline
from refbert_dist.table.config import load_table
from refbert_dist.table.run import TARGETS

TASKS = {"MRPC": {}, "short": {"task": {"name": "MRPC", "max_train": 20}}}


def submission(stage: str, job_id: int) -> Submission:
    return Submission(stage, str(job_id), 1, 1, 1, (), 0.0)


def test_a_cell_waits_for_the_jobs_of_the_cells_before_it(tmp_path: Path) -> None:
    table = load_table(table_file(tmp_path, tasks=TASKS), [f"cache.dir={tmp_path / 'cache'}"])
    first, other_task, other_seed, _ = (cell.experiment for cell in table.cells)
    live = {
        stage.name: submission(stage.name, number)
        for number, stage in enumerate(pipeline.missing_stages(first, TARGETS), start=1)
    }
    general = {"cache-general", "distill-general"}
    assert made_by_others(other_task, TARGETS, [(first, live)]).keys() == general
    shared = made_by_others(other_seed, TARGETS, [(first, live)])
    assert shared.keys() == {"prepare", "retrieve", *general, "finetune", "cache-task"}
    assert shared["finetune"].job_id == live["finetune"].job_id
    profile = SlurmProfile.model_validate({"cluster": "slurm"})
    chain = {link.stage.name: link.after for link in links(other_seed, profile, TARGETS, shared)}
    # The job of cache-task waits for those of finetune and distill-general in turn.
    assert chain == {"distill-task": ("cache-task",), "evaluate": ("distill-task",)}


def test_what_nobody_makes_is_made(tmp_path: Path) -> None:
    table = load_table(table_file(tmp_path), [f"cache.dir={tmp_path / 'cache'}"])
    first, second = (cell.experiment for cell in table.cells)
    assert made_by_others(second, TARGETS, [(first, {})]) == {}
    alone = {"distill-task": submission("distill-task", 1), "evaluate": submission("evaluate", 2)}
    assert made_by_others(second, TARGETS, [(first, alone)]) == {}
