"""Forward passes of students that nobody has trained: how fast a shape is does not depend on its weights."""

from __future__ import annotations

from refbert_dist.config import Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.engine.distributed import device_of
from refbert_dist.engine.world import World
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification
from refbert_dist.stages.evaluate import timed_passes
from refbert_dist.stages.latency import median_latencies
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import student_config
from refbert_dist.tracking.files import read_json_or_none, replace_json
from refbert_dist.tracking.progress import Progress
from tune.config import Search
from tune.figures import timed_shapes


def time_shapes(search: Search, shared: Experiment) -> dict[str, float]:
    """Shape -> median milliseconds of a forward pass of ``evaluate.latency_batch_size`` held-out texts.

    To be called while nothing else runs here; what ``RUN_DIR/latency.json`` has is not timed again. Alone and not in
    turns with the teacher, whose passes would take most of the time.
    """
    path = shared.run.dir / "latency.json"
    known: dict[str, float] = read_json_or_none(path) or {}
    wanted = {name: exp for name, exp in timed_shapes(search).items() if name not in known}
    # References of one kind at a time, because to look them up takes longer than a pass.
    order = sorted(wanted, key=lambda name: (wanted[name].references.count, wanted[name].references.max_length))
    setting: Setting | None = None
    with Progress("shapes", len(wanted), "shapes timed", shared.run.dir) as progress:
        for number, name in enumerate(order, start=1):
            exp = wanted[name]
            if setting is None or setting.exp.references != exp.references:
                setting = Setting(exp, "task", device_of(World.from_environment()))
            known[name] = _pass_ms(exp, setting)
            replace_json(path, known)
            progress.update(number)
    return known


def _pass_ms(exp: Experiment, setting: Setting) -> float:
    assert exp.task is not None
    (system,) = exp.trained_systems()
    config = student_config(exp, system, num_labels=task_spec(exp.task.name).num_labels)
    student = RefBertForSequenceClassification(config).to(setting.device).eval()
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    calls, _ = timed_passes(exp, setting, {system: student}, dev)
    return 1000 * median_latencies({system: calls[system]}, exp.evaluate.latency_repeats)[system]
