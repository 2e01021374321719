"""The only module that imports DeepSpeed: process group, training engine, inference engine."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch

from refbert_dist.config import EngineConfig, OptimConfig
from refbert_dist.engine.world import World, free_port, rendezvous
from refbert_dist.errors import UserError

T = TypeVar("T")

LINEAR = torch.nn.functional.linear
"""torch's own. Stage 3 puts another one in its place that saves memory, rounds differently, and stays there."""
LARGEST_BUCKET = 500_000_000
"""Gradients that are reduced together at most."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def process_group(timeout_s: int) -> Iterator[World]:
    """Join the processes named by the environment (one alone if it names none) and wait for all of them at the end.

    DeepSpeed remembers the first process group it sees, so a process that runs several stages keeps that one; it is
    left when the process ends. Raises UserError where there are more processes than GPUs.
    """
    if "RANK" not in os.environ:
        os.environ.update(rendezvous(rank=0, size=1, port=free_port(), local_rank=0))
    if torch.cuda.is_available():
        _require_device(World.from_environment())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    _skip_build()
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(timeout=datetime.timedelta(seconds=timeout_s), verbose=False)
        atexit.register(torch.distributed.destroy_process_group)
    world = World.from_environment()
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    yield world
    torch.distributed.barrier()


def _require_device(world: World) -> None:
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise UserError(
            f"process {world.local_rank + 1} of this machine has no GPU: torch sees {count}, one for each process; set "
            f"launch.processes={count}, or CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _skip_build() -> None:
    # On CPU, init_distributed compiles a shared-memory all-reduce in every process, and a build that is killed leaves a
    # lock that all later processes wait for. gloo does the same work; skip the build where this version has that hook.
    backend = sys.modules.get("deepspeed.comm.torch")
    if not torch.cuda.is_available() and hasattr(backend, "build_shm_op"):
        setattr(backend, "build_shm_op", lambda: None)  # noqa: B010 - a module attribute that type checkers cannot see


def of_first(value: T) -> T:
    """The first process's value, on every process. A collective.

    What is read from a shared disk may change while processes read it, and they must not decide differently. A process
    that is in no group keeps its own.
    """
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def device_of(world: World) -> torch.device:
    """The device of this process."""
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings decay; biases and normalisation weights do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def training_engine(module: torch.nn.Module, optim: OptimConfig, config: EngineConfig, passes: int) -> Any:
    """Wrap a module for training: optimizer, ZeRO, precision, gradient accumulation over ``passes``, clipping.

    A step whose gradient is not finite in any process is skipped by all (:func:`was_skipped`). DeepSpeed averages
    gradients over passes and processes; callers that want sums multiply by both. Raises UserError where the device
    lacks the precision.
    """
    import deepspeed

    from refbert_dist.engine.bert_adam import BertAdam
    from refbert_dist.engine.guarded_adamw import GuardedAdamW

    if config.precision == "bf16" and not has_bf16():
        raise UserError(
            f"engine.precision is 'bf16' but {torch.cuda.get_device_name()} does not compute in it; "
            "set engine.precision=fp32"
        )
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if config.compile:
        import torch._inductor.config as inductor

        inductor.fallback_random = True  # dropout as without compilation, so that only rounding differs
        module.compile(dynamic=True)
    torch.nn.functional.linear = LINEAR  # or the result would depend on what this process has trained before
    groups, rate, clipping = parameter_groups(module, optim.weight_decay), optim.learning_rate, config.gradient_clipping
    # DeepSpeed clips, and leaves out steps whose gradient is not finite, where it spreads something over the processes.
    at_stage_0 = BertAdam if config.optimizer == "bert_adam" else GuardedAdamW
    optimizer = (
        torch.optim.AdamW(groups, lr=rate, fused=True) if config.zero_stage else at_stage_0(groups, rate, clipping)
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": passes,
            "gradient_clipping": clipping if config.zero_stage else 0.0,
            # DeepSpeed sets a bucket aside at once, by default 2 GB, which few of our models can fill.
            "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": min(weights, LARGEST_BUCKET)},
            # Autocast, not DeepSpeed's bf16 engine: weights, gradients and moments stay fp32 at every stage, so
            # checkpoints are alike in both precisions, and sums over micro-batches and processes as exact as in fp32.
            # That engine sums gradients in bf16 at some stages, keeps its fp32 weights in another place at each, and
            # would hand fp32 teacher states to a bf16 module. No module is named whose gradients may travel in bf16.
            "torch_autocast": {
                "enabled": config.precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": sys.maxsize,
        },
    )
    if not config.zero_stage and engine.dp_world_size == 1:
        # There is nothing to sum, but every gradient would be copied into a bucket and back.
        engine.enable_backward_allreduce = False
    return engine


def was_skipped(engine: Any) -> torch.Tensor:
    """Whether the last step was skipped, on the device, without waiting for it; the same in every process."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "overflow"):
        return torch.tensor(bool(optimizer.overflow), device=engine.device)
    found: torch.Tensor = optimizer.found_inf
    return found.bool()


def gradient_norm(engine: Any) -> float:
    """Norm of the last step's gradient over all processes, before clipping; not finite if the step was skipped."""
    return float(getattr(engine.optimizer, "norm", engine.get_global_grad_norm()))


def has_bf16() -> bool:
    """Whether the device computes in bf16, and does not only pretend to; every CPU does."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _zero3(precision: Precision) -> dict[str, Any]:
    """A frozen model whose weights are spread over the processes and gathered layer by layer."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }


@contextlib.contextmanager
def sharded_loading(world: World, precision: Precision) -> Iterator[None]:
    """Models loaded inside are spread over the processes as they are read, so that none ever holds a whole one."""
    if world.size == 1:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers looks for this object through a weak reference: it counts as long as it lives.
    keep = HfDeepSpeedConfig(_zero3(precision))
    try:
        yield
    finally:
        del keep


def _sizes(module: torch.nn.Module) -> Iterator[tuple[int, int]]:
    """Weights of each parameter that this process holds, and that there are."""
    for parameter in module.parameters():
        partition: Any = parameter
        yield partition.ds_tensor.numel(), partition.ds_numel


def teacher_engine(module: torch.nn.Module, precision: Precision, world: World) -> Any:
    """Wrap a frozen module for inference: in this process alone, or over all processes of the world (ZeRO-3)."""
    import deepspeed

    if world.size > 1:
        engine, *_ = deepspeed.initialize(model=module.eval(), config=_zero3(precision))
        engine.eval()
        own, whole = (sum(sizes) for sizes in zip(*_sizes(module), strict=True))
        log.info("the teacher is spread over %d processes: %d of its %d weights are here", world.size, own, whole)
        return engine
    return deepspeed.init_inference(
        module.to(device_of(world)).eval(), dtype=DTYPES[precision], replace_with_kernel_inject=False
    )
