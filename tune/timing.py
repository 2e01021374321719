"""Forward passes of students that nobody has trained: how fast a shape is does not depend on its weights."""

from __future__ import annotations

from refbert_dist.config import Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.evaluate import Timing, latencies
from refbert_dist.stages.students import student_config


def teacher_ms(exp: Experiment) -> float:
    """Median forward pass of the fine-tuned teacher on held-out texts, milliseconds."""
    return 1000 * _time(exp, with_student=False).seconds["teacher"]


def ratio_to_teacher(exp: Experiment) -> float:
    """How many times faster than the teacher the student of ``exp`` is, in passes that take turns."""
    timing = _time(exp, with_student=True)
    return timing.seconds["teacher"] / timing.seconds[exp.trained_systems()[0]]


def _time(exp: Experiment, with_student: bool) -> Timing:
    assert exp.task is not None
    device = device_of(World.from_environment())
    setting = Setting(exp, "task", device)
    (system,) = exp.trained_systems()
    students = {}
    if with_student:
        config = student_config(exp, system, num_labels=task_spec(exp.task.name).num_labels)
        students[system] = RefBertForSequenceClassification(config).to(device).eval()
    return latencies(exp, setting, students, TokenSet.open(tokens_artifact(exp, "dev")), device)
