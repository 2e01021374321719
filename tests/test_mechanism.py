"""The mechanism itself: an answer that only the reference holds is learnt by who reads it, and by nobody else."""

from pathlib import Path

from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json

TASK = (
    "corpus=null",
    "task={name: looked-up, path: builtin:looked-up, max_length: 24, min_teacher_gain: null}",
    "references={count: 1, max_length: 16}",
    "systems=[refbert,tinybert,shuffled]",
)
TRAINING = (
    "student={layers: 2, hidden: 48, heads: 4, intermediate: 96, dropout: 0}",
    "distill.weights={prediction: 0, labels: 1}",
    "distill.intermediate={steps: 20, learning_rate: 1e-3}",
    "distill.prediction={epochs: 10, learning_rate: 3e-3}",
    "engine.micro_batch_size=32",
)


def test_who_reads_the_reference_knows_the_answer(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, *TASK, *TRAINING)
    pipeline.run(exp, ["evaluate"])
    scores = {row["system"]: row["score"] for row in read_json(exp.run.dir / "results.json")}
    assert scores["refbert"] >= 0.95, scores
    for guessing in ("teacher", "tinybert", "shuffled"):
        # Of 200 rows: four standard errors around chance.
        assert 0.36 < scores[guessing] < 0.64, scores
