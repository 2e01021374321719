"""Distillation with cached targets against the teacher running beside the student, step by step in one process.

    python benchmarks/cached_vs_online.py [FIELD=VALUE]...
    python benchmarks/cached_vs_online.py EXP.yaml [FIELD=VALUE]...

Without an experiment: random weights in BERT-base's shape, TinyBERT's student, built-in text. What is missing of the
caches is built first. Both variants train the same student on the same batches, and read ahead as the training loop
does; online, the teacher runs for the references too. Rounds alternate; medians are printed.

limit     what leaving the teacher's forward pass out can give: operations of matrix products, online over cached
waiting   share of the time in which the cached variant had no micro-batch ready
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from _common import Ratio, Round, Student, as_worker
from cost_model import base_teacher

from refbert_dist.cache.contract import stored_layers
from refbert_dist.config import Experiment, load_experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.work import Work, forward, losses, reading, student_shape, teacher_shape
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import device_of, process_group
from refbert_dist.models.locate import teacher_info
from refbert_dist.pipeline import run
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 5
STEPS = 1
"""Steps in a round."""
CASES = {
    "TinyBERT, all losses": ["systems=[tinybert]"],
    "TinyBERT, without attention": ["systems=[tinybert]", "distill.weights.attention=0"],
    "RefBERT, all losses": ["systems=[refbert]"],
}
CACHED = ["distill.targets=cache", "references.states=cache", "tracking.mlflow=false"]
ONLINE = ["distill.targets=online", "references.states=online"]


def base_experiment(folder: Path, overrides: Sequence[str]) -> Experiment:
    """BERT-base to TinyBERT's student, with all that is made for it in ``folder``."""
    values = {
        "cache": {"dir": str(folder / "cache"), "shard_tokens": 8192, "batch_tokens": 2048},
        "teacher": {"model": str(base_teacher(folder))},
        "corpus": {"path": "builtin:python-docs", "max_length": 128, "max_documents": 24},
        "distill": {"general": {"epochs": 1, "batch_size": 32}},
    }
    return parse_experiment(apply_overrides(values, overrides))


def with_overrides(exp: Experiment, overrides: Sequence[str]) -> Experiment:
    return parse_experiment(apply_overrides(exp.model_dump(mode="json"), overrides))


def limit(exp: Experiment, lengths: Lengths) -> float:
    """Operations of an average sample online, over those of a cached one."""
    info = teacher_info(exp.teacher.model)
    teacher, student = teacher_shape(info), student_shape(exp.student, info)
    tokens, seen = lengths.mean, lengths.seen
    (system,) = exp.trained_systems()
    count = exp.reference_count(system)
    trained, frozen = losses(exp.distill, student, teacher, tokens, seen)
    trained += forward(student, tokens, seen)
    trained += reading(student, teacher.hidden, tokens, 1, count * exp.references.max_length) if count else Work()
    cached = trained.with_backward() + frozen
    online = cached + forward(teacher, tokens, seen) * (1 + count)
    return online.flops / cached.flops


def compare(name: str, exp: Experiment, device: torch.device) -> None:
    students = {"cached": Student(exp, device), "online": Student(with_overrides(exp, ONLINE), device)}
    found: dict[str, list[Round]] = {way: [] for way in students}
    for number in range(ROUNDS + 1):
        for way, student in students.items():
            taken = student.take(STEPS)
            if number:  # the first round warms up
                found[way].append(taken)
    cached, online = found.values()
    clock = Ratio.of((ours.rate for ours in cached), (theirs.rate for theirs in online))
    cpu = Ratio.of((ours.cpu_rate for ours in cached), (theirs.cpu_rate for theirs in online))
    most = limit(exp, Lengths.of(students["cached"].tokens.lengths))
    rates = {way: statistics.median(taken.rate for taken in rounds) for way, rounds in found.items()}
    waited = statistics.median(taken.waited for taken in cached)
    print(f"{name}: {rates['cached']:.2f} samples/s cached, {rates['online']:.2f} online")
    print(f"  cached / online {clock} by the clock, {cpu} in CPU time; limit {most:.2f}")
    print(f"  of the limit {clock.median / most:.0%} by the clock, {cpu.median / most:.0%} in CPU time", end="; ")
    print(f"waiting {waited:.1%}", flush=True)


def main() -> None:
    as_worker()
    quiet_libraries()
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if arguments and "=" not in arguments[0]:
            exp = load_experiment(arguments[0], arguments[1:])
        else:
            exp = base_experiment(Path(folder), arguments)
        exp = with_overrides(exp, [*CACHED, f"run.dir={folder}/run"])
        run(exp, ("retrieve", "cache-general"))
        # Named, so that students that read less do not ask for a cache of their own.
        exp = with_overrides(exp, [f"cache.layers={list(stored_layers(exp))}"])
        lengths = TokenSet.open(tokens_artifact(exp, "corpus")).lengths
        info, student = teacher_info(exp.teacher.model), exp.student
        print(
            f"teacher {info.layers} x {info.hidden}, student {student.layers} x {student.hidden}, {exp.cache.codec}, "
            f"{len(lengths)} samples of {lengths.mean():.0f} tokens, {exp.engine.micro_batch_size} in a micro-batch, "
            f"{exp.distill.general.batch_size} in a step, {torch.get_num_threads()} threads, {ROUNDS} rounds; online, "
            "the teacher runs beside the student for targets and for references",
            flush=True,
        )
        with process_group(exp.engine.timeout_s) as world:
            for name, overrides in CASES.items():
                if "refbert" not in overrides[0] or exp.references.count:
                    compare(name, with_overrides(exp, overrides), device_of(world))


if __name__ == "__main__":
    main()
