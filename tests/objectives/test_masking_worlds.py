"""Guessing masked tokens on several processes: the head reads word embeddings that ZeRO has spread over them."""

import shutil
from pathlib import Path

import forked
import pytest
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.config import Experiment, load_experiment, to_yaml
from refbert_dist.stages.distill import general
from refbert_dist.tracking.metrics import read_metrics


def distill(run_dirs: list[Path]) -> None:
    """What each of the processes does."""
    for run_dir in run_dirs:
        general(load_experiment(run_dir / "experiment.yaml"))


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
    forked.run(3, tmp_path / "logs", distill, [exp.run.dir for exp in spread])
    wanted = list(read_metrics(alone.run.dir))
    assert len(wanted) == 12 and wanted[-1]["mlm"] < 0.99 * wanted[0]["mlm"], "it must learn"
    for exp in spread:
        found = list(read_metrics(exp.run.dir))
        for name in ("mlm", "loss"):
            values = [record[name] for record in found]
            assert values == pytest.approx([record[name] for record in wanted], rel=1e-6), (exp.run.dir, name)
