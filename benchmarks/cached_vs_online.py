"""Distillation with cached targets against the teacher running beside the student, step by step in one process.

    python benchmarks/cached_vs_online.py EXP.yaml [FIELD=VALUE]...

Needs the experiment's general cache (refbert cache build EXP.yaml). Both variants train the same student on the same
batches; rounds alternate, and the medians and their ratio are printed.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from refbert_dist.config import Experiment, load_experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.data.sampler import Sampler
from refbert_dist.engine.distributed import device_of, process_group, training_engine
from refbert_dist.engine.world import World
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.students import new_encoder
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 7
STEPS = 4


def variant(exp: Experiment, world: World, targets: str) -> Callable[[], float]:
    """A function that takes some steps with these targets and returns samples per second."""
    exp = parse_experiment(apply_overrides(exp.model_dump(mode="json"), [f"distill.targets={targets}"]))
    device = device_of(world)
    system = exp.trained_systems()[0]
    setting = Setting(exp, "general", device)
    references = setting.references(system, "corpus")
    student = new_encoder(exp, system)
    objective = EncoderObjective(student, setting.teacher, setting.tokens, setting.states, references, exp.distill)
    optim = exp.distill.general
    sampler = Sampler(objective.lengths, optim.batch_size, exp.engine.micro_batch_size, exp.seed)
    passes = sampler.passes(1)
    engine = training_engine(objective.module.to(device), optim, exp.engine, passes)
    taken = 0

    def run() -> float:
        nonlocal taken
        samples, start = 0, time.perf_counter()
        for _ in range(STEPS):
            batch = sampler.batch(taken)
            taken += 1
            denominators = objective.denominators(batch.samples)
            for micro in batch.share(0, 1, passes):
                terms = engine(**objective.batch(micro.samples, device))
                engine.backward(sum(passes * terms[name] / denominators[name] for name in objective.weights))
                engine.step()
            samples += len(batch.samples)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return samples / (time.perf_counter() - start)

    return run


def main() -> None:
    quiet_libraries()
    exp = load_experiment(sys.argv[1], sys.argv[2:])
    with process_group(exp.engine.timeout_s) as world:
        variants = {targets: variant(exp, world, targets) for targets in ("cache", "online")}
        for run in variants.values():  # warm-up
            run()
        rates: dict[str, list[float]] = {targets: [] for targets in variants}
        for _ in range(ROUNDS):
            for targets, run in variants.items():
                rates[targets].append(run())
    medians = {targets: statistics.median(found) for targets, found in rates.items()}
    for targets, found in rates.items():
        print(f"{targets:7} {medians[targets]:8.1f} samples/s   (min {min(found):.1f}, max {max(found):.1f})")
    ratios = sorted(cache / online for cache, online in zip(rates["cache"], rates["online"], strict=True))
    print(f"cache / online: {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
