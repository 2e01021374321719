"""DeepSpeed in this process: what is trained how, and the optimizer's state in and out."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import nn

from refbert_dist.config import EngineConfig, OptimConfig
from refbert_dist.engine.distributed import (
    device_of,
    parameter_groups,
    process_group,
    teacher_engine,
    training_engine,
)
from refbert_dist.engine.optimizer_state import (
    gather_optimizer,
    gather_weights,
    optimizer_shapes,
    release,
    restore_optimizer,
)
from refbert_dist.engine.world import World
from refbert_dist.errors import UserError

OPTIM = OptimConfig(steps=10, learning_rate=0.01, weight_decay=0.3)
STAGES = (0, 1, 2, 3)
TRAINED = ("0.weight", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias")


@pytest.fixture(autouse=True)
def world() -> Iterator[World]:
    with process_group(60) as world:
        yield world


def network() -> nn.Sequential:
    """Odd sizes, so that ZeRO's flat partitions are padded; one frozen part."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 3))
    module[4].requires_grad_(False)
    return module


def engine_of(
    module: nn.Module, zero_stage: int, passes: int = 1, clip: float = 0.0, precision: Literal["fp32", "bf16"] = "fp32"
) -> Any:
    device = device_of(World(0, 1, 0))
    config = EngineConfig(zero_stage=zero_stage, gradient_clipping=clip, precision=precision)  # type: ignore[arg-type]
    return training_engine(module.to(device), OPTIM, config, passes)


def loss_of(engine: Any, step: int) -> torch.Tensor:
    ids = (torch.arange(8) * 3 + step) % 11
    output: torch.Tensor = engine(ids.to(device_of(World(0, 1, 0))))
    return (output - step).square().mean()


def advance(engine: Any, steps: range) -> None:
    for step in steps:
        engine.backward(loss_of(engine, step))
        engine.step()


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    gather_weights(engine, lambda name, tensor: found.update({name: tensor.cpu().clone()}))
    return found


def optimizer_of(engine: Any, zero_stage: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    gather_optimizer(engine, zero_stage, lambda name, tensor: found.update({name: tensor.cpu().clone()}))
    return found


def continued(engine: Any) -> nn.Sequential:
    module = network()
    module.load_state_dict(weights_of(engine))
    return module


def test_one_process_alone_is_a_world(world: World) -> None:
    assert world == World(0, 1, 0)
    assert torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1
    assert {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    with process_group(60) as again:  # a process that runs several stages keeps its group
        assert again == world


def test_biases_and_norms_do_not_decay() -> None:
    module = network()
    decayed, exempt = parameter_groups(module, 0.3)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert [parameter.shape for parameter in decayed["params"]] == [(11, 5), (7, 5), (3, 7)]
    assert [parameter.shape for parameter in exempt["params"]] == [(7,), (7,), (7,), (3,)]
    together = {id(parameter) for group in (decayed, exempt) for parameter in group["params"]}
    assert together == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("zero_stage", STAGES)
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_engine_is_plain_adamw(zero_stage: int, clip: float) -> None:
    engine = engine_of(network(), zero_stage, passes=2, clip=clip)
    plain = network().to(device_of(World(0, 1, 0)))
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.3), lr=0.01)
    for step in range(4):
        for half in (0, 1):
            engine.backward(loss_of(engine, 2 * step + half))
            engine.step()
        optimizer.zero_grad()
        (sum(loss_of(plain, 2 * step + half) for half in (0, 1)) / 2).backward()  # type: ignore[union-attr]
        if clip:
            norm = nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], clip)
            assert norm > clip
        optimizer.step()
    for name, tensor in weights_of(engine).items():
        torch.testing.assert_close(tensor, plain.state_dict()[name].cpu(), rtol=1e-4, atol=1e-6)
    assert torch.equal(weights_of(engine)["4.weight"], network()[4].weight), "what is frozen stays"


@pytest.mark.parametrize("after", STAGES)
@pytest.mark.parametrize("before", STAGES)
def test_a_job_survives_a_restart_also_with_another_zero_stage(before: int, after: int) -> None:
    whole = engine_of(network(), before)
    advance(whole, range(6))

    first = engine_of(network(), before)
    advance(first, range(3))
    stored = optimizer_of(first, before)
    assert {name: tensor.shape for name, tensor in stored.items()} == optimizer_shapes(network())
    assert stored.keys() == {
        "step",
        *(f"{name}.{moment}" for name in TRAINED for moment in ("exp_avg", "exp_avg_sq")),
    }
    assert stored["step"] == 3 and all(tensor.abs().max() > 0 for tensor in stored.values())
    assert all((tensor >= 0).all() for name, tensor in stored.items() if name.endswith("exp_avg_sq"))

    second = engine_of(continued(first), after)
    restore_optimizer(second, after, stored.__getitem__)
    again = optimizer_of(second, after)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    advance(second, range(3, 6))
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(second)[name], tensor, rtol=0, atol=1e-6 if before != after else 0)


def test_forgetting_the_step_count_would_be_seen() -> None:
    """Adam's bias correction depends on it; this guards the comparison above."""
    results = []
    for step in (3, 0):
        first = engine_of(network(), 0)
        advance(first, range(3))
        second = engine_of(network(), 0)
        stored = {**optimizer_of(first, 0), "step": torch.tensor(float(step))}
        restore_optimizer(second, 0, stored.__getitem__)
        advance(second, range(3, 6))
        results.append(weights_of(second)["1.weight"])
    assert (results[0] - results[1]).abs().max() > 1e-4


@pytest.mark.parametrize("zero_stage", STAGES)
def test_a_module_is_whole_and_ordinary_after_its_training(zero_stage: int) -> None:
    module = network()
    engine = engine_of(module, zero_stage)
    advance(engine, range(2))
    wanted = weights_of(engine)
    ids = torch.arange(5).to(device_of(World(0, 1, 0)))
    expected = module(ids)
    release(engine)
    assert torch.equal(module(ids), expected)
    assert all(torch.equal(module.state_dict()[name].cpu(), tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("zero_stage", STAGES)
def test_bf16_computes_in_16_bits_and_keeps_32(zero_stage: int) -> None:
    engine = engine_of(network(), zero_stage, precision="bf16")
    seen: set[torch.dtype] = set()
    engine.module[1].register_forward_hook(lambda _module, _given, output: seen.add(output.dtype))
    advance(engine, range(3))
    assert seen == {torch.bfloat16}
    kept = {**weights_of(engine), **optimizer_of(engine, zero_stage)}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    fine = [tensor for tensor in kept.values() if not torch.equal(tensor, tensor.bfloat16().float())]
    assert len(fine) >= 3 * len(TRAINED), "weights and moments have more digits than bf16 has"


def test_what_was_trained_before_leaves_no_trace() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        engine = engine_of(nn.Sequential(nn.Embedding(11, 64), nn.Linear(64, 64), nn.Linear(64, 3)), 0)
        ids = torch.arange(88).view(8, 11).to(device_of(World(0, 1, 0))) % 11  # a linear layer rounds otherwise in 3 D
        results.append(engine(ids).detach())
        advance(engine_of(network(), 3), range(1))
    assert torch.equal(*results)


def test_bf16_that_the_device_only_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UserError, match=r"engine\.precision is 'bf16' but Tesla V100 .*; set engine\.precision=fp32"):
        training_engine(network(), OPTIM, EngineConfig(precision="bf16"), 1)


def test_a_process_alone_does_not_reduce_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = engine_of(network(), 0), engine_of(network(), 0)
    plain.enable_backward_allreduce = True
    advance(plain, range(3))

    def reduce(*_: Any, **__: Any) -> None:
        raise AssertionError("gradients are copied into a bucket and back")

    monkeypatch.setattr(engine, "buffered_allreduce_fallback", reduce)
    advance(engine, range(3))
    expected, found = weights_of(plain), weights_of(engine)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    words = r"process 2 of this machine has no GPU: torch sees 1, .*; set launch\.processes=1, or CUDA_VIS"
    with pytest.raises(UserError, match=words), process_group(60):
        pass


def test_the_inference_engine_answers_as_the_module_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)).to(device_of(World(0, 1, 0))).train()
    given = torch.randn(4, 5, device=device_of(World(0, 1, 0)))
    with torch.inference_mode():
        expected = module[0](given)
        engine = teacher_engine(module, "fp32", World(0, 1, 0))
        torch.testing.assert_close(engine(given), expected, rtol=0, atol=0)


def test_the_inference_engine_computes_in_half_precision_where_asked() -> None:
    module = nn.Sequential(nn.Linear(5, 5)).to(device_of(World(0, 1, 0)))
    given = torch.randn(4, 5, device=device_of(World(0, 1, 0)))
    with torch.inference_mode():
        expected = module(given)
        found = teacher_engine(module, "bf16", World(0, 1, 0))(given.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
