"""Weights and Adam's moments by parameter name, in and out of every ZeRO stage.

Each stage keeps a parameter's state elsewhere: whole in every process (0), as a part of a flat tensor per parameter
group (1, 2), as a part of a flat tensor of parts (3). An adapter answers one question: which elements does this process
hold, and where? DeepSpeed's own accessors know nothing of stage 0, fail at stages 1 and 2 with more than one group
(they link the state after the first group's step only), and give every process the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"
"""Adam's own count of steps, by which it corrects its moments."""

Keep = Callable[[str, Tensor], None]
"""Takes a named tensor, which may change after the call."""


def optimizer_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of all that :func:`gather_optimizer` will give for a module that is not wrapped yet."""
    trained = {name: parameter.shape for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {STEP: torch.Size(), **{f"{name}.{moment}": shape for name, shape in trained.items() for moment in MOMENTS}}


def gather_weights(engine: Any, keep: Keep) -> None:
    """Give ``keep`` every entry of the module's state dict, in the first process. A collective."""
    first = torch.distributed.get_rank() == 0
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        whole = _joined(_part_of_weight(tensor), tensor.ds_shape) if _is_spread(tensor) else tensor
        if first:
            keep(name, whole.detach())


def gather_optimizer(engine: Any, zero_stage: int, keep: Keep) -> None:
    """Give ``keep`` the ``step`` and all moments, ``NAME.exp_avg`` and so on, in the first process. A collective."""
    first = torch.distributed.get_rank() == 0
    adapter = _adapter(engine, zero_stage)
    if first:
        keep(STEP, adapter.inner.state[adapter.owners()[0]][STEP])
    for name, parameter in _trained(engine):
        part = adapter.part(parameter)
        for moment in MOMENTS:
            state = adapter.inner.state[part.owner][moment]
            whole = state if zero_stage == 0 else _joined(part.of(state), _shape(parameter))
            if first:
                keep(f"{name}.{moment}", whole)


def restore_optimizer(engine: Any, zero_stage: int, stored: Callable[[str], Tensor]) -> None:
    """Put ``step`` and moments into a fresh optimizer; ``stored`` gives a tensor by its name."""
    adapter = _adapter(engine, zero_stage)
    for owner in adapter.owners():
        # A fused optimizer counts on the device, any other on the host.
        step = stored(STEP).to(owner.device if adapter.inner.defaults["fused"] else "cpu", copy=True)
        adapter.inner.state[owner] = {STEP: step, **{moment: torch.zeros_like(owner) for moment in MOMENTS}}
    for name, parameter in _trained(engine):
        part = adapter.part(parameter)
        for moment in MOMENTS:
            held = part.of(adapter.inner.state[part.owner][moment])
            held.tensor.copy_(stored(f"{name}.{moment}").flatten()[held.start : held.start + held.tensor.numel()])


def release(engine: Any) -> None:
    """Make a module that stage 3 has spread whole again in every process, and an ordinary one. A collective."""
    spread = [parameter for parameter in engine.module.parameters() if _is_spread(parameter)]
    if not spread:
        return
    engine.destroy()  # takes away the hooks that spread the weights after each use
    for parameter in spread:
        parameter.data = _joined(_part_of_weight(parameter), parameter.ds_shape, everywhere=True)


@dataclass(frozen=True)
class _Held:
    """Elements of a flattened whole that this process holds."""

    tensor: Tensor
    start: int
    """Place of the first of them in the whole."""


@dataclass(frozen=True)
class _Part:
    """Elements ``start`` to ``start + length`` of a flattened parameter lie in ``owner`` from ``at`` on."""

    owner: Tensor
    """What the inner optimizer steps."""
    at: int
    start: int
    length: int

    def of(self, state: Tensor) -> _Held:
        """These elements of a state of the owner."""
        return _Held(state.view(-1)[self.at : self.at + self.length], self.start)


class _Adapter(Protocol):
    inner: Any
    """The optimizer that holds the moments."""

    def owners(self) -> list[Tensor]:
        """All that the inner optimizer steps."""

    def part(self, parameter: Any) -> _Part:
        """Where the elements of this parameter are that this process holds."""


class _Whole:
    """Stage 0: every process holds everything."""

    def __init__(self, engine: Any) -> None:
        self.inner = engine.optimizer

    def owners(self) -> list[Tensor]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]

    def part(self, parameter: Any) -> _Part:
        return _Part(parameter, 0, 0, parameter.numel())


class _Flat:
    """Stages 1 and 2: all parameters of a group end to end, cut into one piece per process."""

    def __init__(self, engine: Any) -> None:
        self.inner = engine.optimizer.optimizer
        self._pieces = engine.optimizer.single_partition_of_fp32_groups

    def owners(self) -> list[Tensor]:
        return list(self._pieces)

    def part(self, parameter: Any) -> _Part:
        mapping = parameter._hp_mapping
        if mapping is None:  # it lies in the pieces of other processes
            return _Part(self._pieces[0], 0, 0, 0)
        within, place = mapping.lp_fragment_address, mapping.hp_fragment_address
        return _Part(self._pieces[mapping.param_group_index], place.start, within.start, within.numel)


class _Spread:
    """Stage 3: every parameter is cut into one piece per process; a process's pieces lie end to end."""

    def __init__(self, engine: Any) -> None:
        self.inner = engine.optimizer.optimizer
        self._zero = engine.optimizer

    def owners(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def part(self, parameter: Any) -> _Part:
        group, at, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        held = _part_of_weight(parameter)
        return _Part(self._zero.fp32_partitioned_groups_flat[group], at, held.start, held.tensor.numel())


def _adapter(engine: Any, zero_stage: int) -> _Adapter:
    adapters: dict[int, Callable[[Any], _Adapter]] = {0: _Whole, 1: _Flat, 2: _Flat, 3: _Spread}
    return adapters[zero_stage](engine)


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _is_spread(tensor: Any) -> bool:
    return hasattr(tensor, "ds_tensor")


def _shape(parameter: Any) -> torch.Size:
    shape: torch.Size = parameter.ds_shape if _is_spread(parameter) else parameter.shape
    return shape


def _part_of_weight(parameter: Any) -> _Held:
    """The piece of a spread parameter, without the padding of the last pieces."""
    piece = parameter.ds_tensor.data
    start = min(torch.distributed.get_rank() * piece.numel(), parameter.ds_numel)
    return _Held(piece[: parameter.ds_numel - start], start)


def _joined(held: _Held, shape: torch.Size, everywhere: bool = False) -> Tensor:
    """The whole of which every process holds a part, in the first process or in all. A collective."""
    whole = torch.zeros(shape.numel(), dtype=held.tensor.dtype, device=held.tensor.device)
    whole[held.start : held.start + held.tensor.numel()] = held.tensor
    if everywhere:
        torch.distributed.all_reduce(whole)
    else:
        torch.distributed.reduce(whole, dst=0)
    return whole.view(shape)
