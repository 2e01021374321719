"""Guessing masked tokens on several processes: the head reads word embeddings that ZeRO has spread over them."""

import shutil
import sys
from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.engine.processes import run_processes
from refbert_dist.tracking.metrics import read_metrics

WORKER = Path(__file__).parents[1] / "engine" / "distill_worker.py"


@pytest.mark.dist
def test_the_loss_is_that_of_one_process_at_every_zero_stage(tmp_path: Path) -> None:
    """A step has four micro-batches, of 2, 2, 2 and 1 samples: three processes cannot share them evenly."""

    def experiment(zero_stage: int) -> Experiment:
        run_dir = tmp_path / f"stage {zero_stage}"
        return tiny_experiment(
            tmp_path,
            "task=null",
            "systems=[refbert]",
            f"run.dir={run_dir}",
            f"cache.dir={run_dir / 'cache'}",  # a student is distilled once for all runs of a cache
            "distill.weights.mlm=1",
            "distill.general={steps: 12, batch_size: 7, learning_rate: 2.0e-3}",
            "engine.micro_batch_size=2",
            f"engine.zero_stage={zero_stage}",
        )

    alone, *spread = (experiment(stage) for stage in (0, 2, 3))
    pipeline.run(alone, ["retrieve", "cache-general"])
    for exp in spread:
        shutil.copytree(alone.cache.dir, exp.cache.dir)
        (exp.run.dir / "experiment.yaml").write_text(to_yaml(exp))
    pipeline.run(alone, ["distill-general"])
    argv = [sys.executable, str(WORKER), *(str(exp.run.dir) for exp in spread)]
    run_processes(argv, count=3, threads=1, run_dir=tmp_path, stage="work")
    wanted = list(read_metrics(alone.run.dir))
    assert len(wanted) == 12 and wanted[-1]["mlm"] < 0.99 * wanted[0]["mlm"], "it must learn"
    for exp in spread:
        found = list(read_metrics(exp.run.dir))
        for name in ("mlm", "loss"):
            values = [record[name] for record in found]
            assert values == pytest.approx([record[name] for record in wanted], rel=1e-6), (exp.run.dir, name)
