"""States of a run's models on some rows, pooled, and attention: what the diagnostics are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refbert_dist.config import SystemName
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import Part, TokenSet
from refbert_dist.diagnostics.attention import reference_mass
from refbert_dist.engine.memory import explain_out_of_memory
from refbert_dist.references.sources import encoded_by
from refbert_dist.stages.setting import Setting


@dataclass(frozen=True)
class Pooled:
    """Of the same ``N`` rows; means over tokens of last states."""

    teacher: np.ndarray
    """Of the input, float32 ``[N, T]``."""
    references: np.ndarray
    """What the first layer reads as values, float32 ``[N, T]``; zeros where there is no reference."""
    random: np.ndarray
    """The same of pool rows that are drawn."""
    students: dict[str, np.ndarray]
    """Of the input, float32 ``[N, H]``."""
    mass: dict[str, np.ndarray]
    """Attention on references of the students that read any, ``[N, h]``."""
    even: dict[str, np.ndarray]
    """What it would be if all got as much, ``[N]``."""


def pooled_states(
    setting: Setting,
    students: Mapping[SystemName, Any],
    part: Part,
    tokens: TokenSet,
    rows: np.ndarray,
    batch_size: int,
) -> Pooled:
    """Run teacher and students over ``rows`` of ``part``."""
    sources = {system: setting.references(system, part) for system in students}
    read, states = setting.references("refbert", part), setting.reference_states()
    assert read is not None
    drawn = np.random.default_rng(0).integers(len(setting.tokens), size=(len(rows), 1))
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.float().cpu())

    @explain_out_of_memory("diagnose", f"lower evaluate.batch_size (now {batch_size})")
    @torch.inference_mode()
    def run(start: int) -> None:
        some = rows[start : start + batch_size]
        batch = to_device(token_batch(tokens, some, setting.teacher.pad_token_id), setting.device)
        (last,) = setting.teacher(**batch, layers=(setting.teacher.num_layers,))
        keep("teacher", _mean(last, batch["attention_mask"]))
        keep("references", _read(read.of(some)))
        keep("random", _read(states.gather(drawn[start : start + batch_size])))
        for system, student in students.items():
            source = sources[system]
            given = encoded_by(student, source.of(some)) if source else {}
            last = student.base_model(**batch, **given).last_hidden_state
            keep(f"student {system}", _mean(last, batch["attention_mask"]))
            if given:
                mass, even = reference_mass(student, batch, given)
                keep(f"mass {system}", mass)
                keep(f"even {system}", even)

    for start in range(0, len(rows), batch_size):
        run(start)
    arrays = {name: torch.cat(values).numpy() for name, values in found.items()}

    def of(kind: str) -> dict[str, np.ndarray]:
        return {system: arrays[f"{kind} {system}"] for system in students if f"{kind} {system}" in arrays}

    own = {name: arrays[name] for name in ("teacher", "references", "random")}
    return Pooled(**own, students=of("student"), mass=of("mass"), even=of("even"))


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Means ``[B, T]`` of states ``[B, S, T]`` over the positions of ``mask [B, S]``."""
    counted = mask.unsqueeze(-1).to(states.dtype)
    return (states * counted).sum(1) / counted.sum(1).clamp(min=1)


def _read(given: dict[str, Tensor]) -> Tensor:
    """References ``[B, K, R, T]`` as one vector each, ``[B, T]``."""
    return _mean(given["reference_values"].flatten(1, 2), given["reference_mask"].flatten(1))
