"""What GLUE's test server takes: answers to its test rows, in files of its names and form, and these in a zip."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refbert_dist.artifacts import atomic_path, write_text
from refbert_dist.config import Experiment
from refbert_dist.data.glue import SUBMISSION_ROWS, TaskSpec, task_spec
from refbert_dist.data.tokens import TokenSet, evaluated_parts, tokens_artifact
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.stages.answers import answers
from refbert_dist.stages.evaluate import student_forward
from refbert_dist.stages.scores import predictions_of
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, model_folder
from refbert_dist.tracking.progress import Progress


def run(exp: Experiment) -> dict[str, Any]:
    """Write ``RUN_DIR/submission``: what the experiment's first system, the exported one, answers.

    Returns the rows of each file, the files of another number of rows than the server's, and those that are missing for
    a whole submission.
    """
    assert exp.task is not None
    spec = task_spec(exp.task.name)
    setting = Setting(exp, "task", device_of(World.from_environment()))
    system = exp.trained_systems()[0]
    student = load_classifier(model_folder(exp, f"prediction-{system}")).to(setting.device).eval()
    asked = {
        part: TokenSet.open(tokens_artifact(exp, part)) for part in evaluated_parts(exp) if part in spec.submission
    }
    folder = exp.run.dir / "submission"
    rows: dict[str, int] = {}
    with Progress("submission", sum(map(len, asked.values())), "samples", run_dir=exp.run.dir) as progress:
        for part, tokens in asked.items():
            forward = student_forward(student, setting, system, part, tokens)
            logits = []
            for answered in answers(forward, len(tokens), exp.evaluate.batch_size):
                logits.append(answered)
                progress.update(sum(rows.values()) + sum(map(len, logits)))
            write_text(folder / spec.submission[part], table(spec, predictions_of(np.concatenate(logits))))
            rows[spec.submission[part]] = len(tokens)
    _write_zip(folder, rows)
    return {
        "system": system,
        "rows": rows,
        "other_size": [name for name, count in rows.items() if count != SUBMISSION_ROWS[name]],
        "missing": [name for name in SUBMISSION_ROWS if name not in rows],
    }


def table(spec: TaskSpec, predictions: np.ndarray) -> str:
    """A file of the submission: classes or scores ``[N]`` in the order of the test rows."""
    lines = [f"{index}\t{spec.cell(value)}\n" for index, value in enumerate(predictions.tolist())]
    return "index\tprediction\n" + "".join(lines)


def _write_zip(folder: Path, names: Iterable[str]) -> None:
    with atomic_path(folder / "submission.zip") as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for name in names:
            # Not by the file's name alone, which would add the time: the same answers are the same bytes.
            packed.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
