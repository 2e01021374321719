"""How training scales: measured from one process to two, and modelled from 8 GPUs to 256.

    python benchmarks/scaling.py

Measured: steps of a student of 4 layers x 312 at a fixed global batch, random tokens, one thread a process, gradients
reduced over gloo. Rounds alternate; medians, and the least and the most:

one           one process computes the whole batch and reduces nothing; the other waits
two           each computes half of it; gradients are reduced
apart         as two, but nothing is reduced; the slower process counts: what they cost each other
all-reduce    of as many bytes as there are gradients, alone

The model's form, *passes of one process / processes + update + all-reduce*, is held against the step of two.

Modelled: the compute time of a step is that of ``refbert_dist/costs`` with its assumed GPU; the network is assumed
here, and printed. Efficiency is the rate of samples over that of as many single GPUs that compute the step in the
largest micro-batches. Columns:

none, full    overlap of ZeRO 0 and 1: reduction follows the backward pass, or the longer of the two counts
ZeRO-2, -3    without overlap
shared disk   ZeRO 0 and 1 without overlap, states read from the shared disk of ``refbert_dist/costs``; all other
              columns read from the nodes' own disks
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from refbert_dist.artifacts import read_json, write_json
from refbert_dist.config import EngineConfig, Experiment, OptimConfig, StudentConfig, parse_experiment
from refbert_dist.costs.extents import Extent
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.rates import CORE, CORES_PER_GPU, GPU, Core, Rates
from refbert_dist.costs.stages import Place, stage_costs
from refbert_dist.costs.work import student_shape
from refbert_dist.engine.distributed import device_of, process_group, training_engine
from refbert_dist.engine.processes import run_processes
from refbert_dist.engine.world import World
from refbert_dist.models.locate import teacher_info
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 9
BATCH, MICRO, TOKENS = 32, 8, 64
PROCESSES = 2
STUDENT = StudentConfig()
RESULT = "scaling.json"

LENGTH = 128
"""Tokens of a sample in the model; all are full."""
GLOBAL_BATCH, GPU_BATCH, LARGEST_MICRO = 2048, 32, 32
GPUS = (8, 16, 32, 64, 128, 256)
IDEAL_DISK = replace(CORE, disk_bytes_s=math.inf, disk_total_bytes_s=math.inf)
"""For a cache that lies on the nodes' own disks."""
PAYS = 1.5
"""Twice the GPUs pay where they train at least so many times as fast."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What joins the GPUs. All of it is assumed: nothing of this could be measured."""

    node: int = 8
    """GPUs of a node."""
    inner_bytes_s: float = 200e9
    """NVLink, what a GPU sends in a second; two thirds of the 300 GB/s of an A100."""
    outer_bytes_s: float = 20e9
    """InfiniBand, what a GPU sends in a second; four fifths of 200 Gbit/s, an adapter for each GPU."""
    inner_hop_s: float = 5e-6
    outer_hop_s: float = 15e-6

    def half_s(self, size: float, gpus: int) -> float:
        """A reduce-scatter or an all-gather, which together are an all-reduce, of ``size`` bytes.

        By rings within the nodes, (n-1)/n of the bytes, then by rings between them, each GPU with its share.
        """
        inner = min(gpus, self.node)
        outer = math.ceil(gpus / self.node)
        within = (inner - 1) * (size / inner / self.inner_bytes_s + self.inner_hop_s)
        between = (outer - 1) * (size / inner / outer / self.outer_bytes_s + self.outer_hop_s)
        return within + between


def halves(stage: int, passes: int) -> int:
    """Reduce-scatters and all-gathers of a step, by ZeRO stage.

    0 and 1: gradients are summed up once, and they or the new weights gathered. 2: gradients are summed up in each
    pass. 3: weights are gathered in each forward and each backward pass besides.
    """
    return {0: 2, 1: 2, 2: passes + 1, 3: 3 * passes}[stage]


# -- modelled ----------------------------------------------------------------------------------------------------------


def compute_s(exp: Experiment, batch: int, gpus: int, micro: int, core: Core = IDEAL_DISK) -> float:
    """Seconds of a step without communication between GPUs."""
    distill = exp.distill.model_copy(update={"general": OptimConfig(steps=1, batch_size=batch)})
    engine = exp.engine.model_copy(update={"micro_batch_size": micro})
    exp = exp.model_copy(update={"distill": distill, "engine": engine})
    extent = Extent(Lengths.of(np.full(1_000_000, LENGTH)), "assumed", counted=False)
    rates = Rates(replace(GPU, reduced_bytes_s=math.inf), core)
    place = Place(rates=rates, processes=gpus, cores=gpus * CORES_PER_GPU)
    return stage_costs(exp, {"corpus": extent}, place)["distill-general"].wall_s


def model(folder: Path, network: Network) -> None:
    (folder / "bert-base").mkdir()
    (folder / "bert-base" / "config.json").write_text(json.dumps(BERT_BASE))
    print(f"\nmodelled: {network}")
    print(
        f"compute: {GPU.name} ({GPU.basis}), {GPU.training.flops_s / 1e12:.0f} TFLOP/s in fp32; teacher of 12 x 768, "
        f"targets and references cached, samples of {LENGTH} tokens, micro-batches of at most {LARGEST_MICRO}"
    )
    base = StudentConfig(layers=12, hidden=768, intermediate=3072)
    for student in (STUDENT, base):
        exp = parse_experiment(
            {
                "teacher": {"model": str(folder / "bert-base")},
                "corpus": {"path": "builtin:python-docs"},
                "student": student.model_dump(),
                "cache": {"codec": "int8"},
                "systems": ["refbert"],
            }
        )
        size = 4.0 * student_shape(student, teacher_info(exp.teacher.model)).parameters
        for fixed in (f"{GLOBAL_BATCH} samples a step", f"{GPU_BATCH} samples a step and GPU"):
            print(f"\n{student.layers} x {student.hidden}, {size / 1e6:.0f} MB of gradients, {fixed}")
            scaling(exp, size, network, whole=fixed == f"{GLOBAL_BATCH} samples a step")


def scaling(exp: Experiment, size: float, network: Network, whole: bool) -> None:
    """Table of one student; ``whole``: the global batch is fixed, else the batch of each GPU."""
    print("GPUs    compute   reduce    none    full  ZeRO-2  ZeRO-3  shared disk  samples/s")
    rates = []
    for gpus in GPUS:
        batch = GLOBAL_BATCH if whole else GPU_BATCH * gpus
        micro = min(LARGEST_MICRO, batch // gpus)
        passes = batch // gpus // micro
        compute = compute_s(exp, batch, gpus, micro)
        alone = compute_s(exp, batch, 1, LARGEST_MICRO) / gpus
        half = network.half_s(size, gpus)
        reduce = halves(0, passes) * half
        with_disk = compute_s(exp, batch, gpus, micro, CORE) + reduce
        steps = [compute + halves(stage, passes) * half for stage in (0, 2, 3)]
        none, two, three, disk = (alone / step for step in (*steps, with_disk))
        full = alone / max(compute, reduce)
        rates.append(batch / steps[0])
        print(
            f"{gpus:4} {compute * 1e3:7.1f} ms {reduce * 1e3:5.2f} ms {none:7.1%} {full:7.1%} {two:7.1%} {three:7.1%} "
            f"{disk:12.1%} {rates[-1]:10,.0f}"
        )
    for fewer, more, before, after in zip(GPUS, GPUS[1:], rates, rates[1:], strict=False):
        if after < PAYS * before:
            print(f"stops paying at {fewer}: {more} GPUs are {after / before:.2f} times as fast")
            return
    print(f"pays up to {GPUS[-1]}: the last doubling is {rates[-1] / rates[-2]:.2f} times as fast")


BERT_BASE = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


# -- measured ----------------------------------------------------------------------------------------------------------


def student_module() -> RefBertModel:
    return RefBertModel(
        RefBertConfig(
            hidden_size=STUDENT.hidden,
            num_hidden_layers=STUDENT.layers,
            num_attention_heads=STUDENT.heads,
            intermediate_size=STUDENT.intermediate,
        ),
        add_pooling_layer=False,
    )


def stepper(world: World, processes: int, reduced: bool) -> Callable[[], tuple[float, float]]:
    """A function that takes a step of a batch that so many processes share; seconds of (the step, its update)."""
    passes = BATCH // MICRO // processes
    device = device_of(world)
    engine = training_engine(student_module().to(device), OptimConfig(steps=1), EngineConfig(), passes)
    engine.enable_backward_allreduce = reduced
    ids = torch.randint(1000, 30000, (MICRO, TOKENS), device=device)

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(passes):
            engine.backward(engine(input_ids=ids).last_hidden_state.square().mean())
            computed = time.perf_counter()
            engine.step()
        end = time.perf_counter()
        return end - start, end - computed

    return step


def work(folder: Path) -> None:
    quiet_libraries()
    with process_group(600) as world:
        one = stepper(world, 1, reduced=False)
        two = stepper(world, PROCESSES, reduced=True)
        apart = stepper(world, PROCESSES, reduced=False)
        gradients = torch.ones(sum(parameter.numel() for parameter in student_module().parameters()))
        found: dict[str, list[float]] = {name: [] for name in ("one", "update", "two", "apart", "all-reduce")}
        for number in range(1 + ROUNDS):  # the first warms up
            torch.distributed.barrier()
            if world.rank == 0:
                step_s, update_s = one()
                found["one"].append(step_s)
                found["update"].append(update_s)
            for name, both in (("two", two), ("apart", apart)):
                torch.distributed.barrier()
                slower = torch.tensor(both()[0])
                torch.distributed.all_reduce(slower, op=torch.distributed.ReduceOp.MAX)
                found[name].append(slower.item())
            start = time.perf_counter()
            torch.distributed.all_reduce(gradients)
            found["all-reduce"].append(time.perf_counter() - start)
            if number == 0:
                found = {name: [] for name in found}
        if world.rank == 0:
            write_json(folder / RESULT, {"seconds": found, "bytes": 4 * gradients.numel()})


def measure(folder: Path) -> None:
    argv = [sys.executable, __file__, "worker", str(folder)]
    run_processes(argv, count=PROCESSES, threads=1, run_dir=folder, stage="scaling")
    result = read_json(folder / RESULT)
    found = result["seconds"]
    print(
        f"measured: {BATCH} samples x {TOKENS} tokens a step, micro-batches of {MICRO}, {result['bytes'] / 1e6:.0f} MB "
        f"of gradients, {ROUNDS} rounds"
    )
    for name, seconds in found.items():
        rate = f"   {BATCH / statistics.median(seconds):6.1f} samples/s" if name in ("one", "two") else ""
        print(f"{name:10} {spread(seconds)}{rate}")
    reduce = np.array(found["all-reduce"])
    print(f"all-reduce {result['bytes'] / np.median(reduce) / 1e9:.2f} GB/s")
    one, update, two, apart = (np.array(found[name]) for name in ("one", "update", "two", "apart"))
    print(f"one / two: {np.median(one / two):.2f} times as fast, efficiency {np.median(one / two) / PROCESSES:.0%}")
    for name, predicted in (
        ("passes of one / 2 + update + all-reduce", (one - update) / PROCESSES + update + reduce),
        ("apart + all-reduce", apart + reduce),
    ):
        print(f"two, as {name}: {np.median(predicted) * 1e3:.0f} ms, error {np.median(predicted / two) - 1:+.1%}")


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:6.0f} ms (min {min(seconds) * 1e3:.0f}, max {max(seconds) * 1e3:.0f})"


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work(Path(sys.argv[2]))
        return
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder), Network())
        measure(Path(folder))


if __name__ == "__main__":
    main()
