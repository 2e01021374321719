"""Adam's moments by parameter name, independent of ZeRO stage and number of processes.

ZeRO 1 keeps each process's slice of the flattened parameters. DeepSpeed's own accessors return nothing at stage 0 and,
with more than one parameter group, fail at stage 1 (they link the state after the first group's step only), so the
slices are read through the address that every parameter carries.
"""

from __future__ import annotations

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_moments(engine: Any, zero_stage: int) -> dict[str, torch.Tensor]:
    """Full moments as ``NAME.exp_avg`` and ``NAME.exp_avg_sq`` on the CPU. A collective: every process calls it."""
    gathered = {}
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            if zero_stage == 0:
                full = engine.optimizer.state[parameter][moment]
            else:
                full = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
                mapping = parameter._hp_mapping
                if mapping is not None:
                    part, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                    flat = _flat_state(engine, mapping.param_group_index)[moment]
                    full[part.start : part.start + part.numel] = flat[place.start : place.start + place.numel]
                torch.distributed.all_reduce(full)
            gathered[f"{name}.{moment}"] = full.detach().reshape(parameter.shape).cpu().clone()
    return gathered


def restore_moments(engine: Any, zero_stage: int, moments: dict[str, torch.Tensor], step: int) -> None:
    """Put moments and the step count back into a fresh optimizer."""
    if zero_stage > 0:
        for group in range(len(engine.optimizer.single_partition_of_fp32_groups)):
            state = _flat_state(engine, group)
            partition = engine.optimizer.single_partition_of_fp32_groups[group]
            state["step"] = torch.tensor(float(step))
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(partition)
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            full = moments[f"{name}.{moment}"].to(parameter.device)
            if zero_stage == 0:
                state = engine.optimizer.state[parameter]
                state["step"] = torch.tensor(float(step))
                state[moment] = full.clone()
            elif (mapping := parameter._hp_mapping) is not None:
                part, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                flat = _flat_state(engine, mapping.param_group_index)[moment]
                flat[place.start : place.start + place.numel] = full.flatten()[part.start : part.start + part.numel]


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _flat_state(engine: Any, group: int) -> dict[str, torch.Tensor]:
    partition = engine.optimizer.single_partition_of_fp32_groups[group]
    state: dict[str, torch.Tensor] = engine.optimizer.optimizer.state[partition]
    return state
