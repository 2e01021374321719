"""Students of any shape learn from the same teacher (4 layers x 32, 4 heads), with references and without."""

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from conftest import World
else:
    World = Any

CPU = torch.device("cpu")
SAMPLES = np.array([4, 17, 2, 30, 11, 0])

SHAPES = [
    # layers, hidden, heads, intermediate
    (1, 8, 1, 4),  # one layer, one head
    (1, 4, 4, 1),  # heads of width 1
    (1, 1, 1, 1),
    (2, 21, 7, 13),  # a width that has nothing in common with the teacher's
    (3, 30, 5, 50),  # heads that do not divide the teacher's width
    (4, 32, 8, 64),
    (4, 32, 4, 64),  # the teacher's own shape
    (5, 24, 4, 48),  # deeper
    (9, 16, 2, 32),  # deeper than twice the teacher
    (2, 64, 16, 128),  # wider, with more heads than the teacher
    (6, 96, 12, 16),  # wider and deeper
]


def random_shapes(count: int) -> list[tuple[int, int, int, int]]:
    draw = random.Random(7)
    shapes = []
    for _ in range(count):
        heads = draw.randint(1, 9)
        shapes.append((draw.randint(1, 9), heads * draw.randint(1, 12), heads, draw.randint(1, 80)))
    return shapes


def overrides(shape: tuple[int, int, int, int]) -> list[str]:
    return [
        f"student.{name}={value}"
        for name, value in zip(("layers", "hidden", "heads", "intermediate"), shape, strict=True)
    ]


@pytest.mark.parametrize("system", ["refbert", "tinybert"])
@pytest.mark.parametrize("shape", [*SHAPES, *random_shapes(5)], ids=lambda shape: "x".join(map(str, shape)))
def test_any_shape_learns(world: World, shape: tuple[int, int, int, int], system: Any) -> None:
    """Every term is there and finite, cutting the batch changes none of them, and a few steps lower their sum."""
    projection = "per_layer" if shape[0] % 2 else "shared"
    objective = world.objective(system, *overrides(shape), f"distill.projection={projection}")
    module, denominators = objective.module, objective.denominators(SAMPLES)
    assert module.student.config.num_hidden_layers == shape[0] == len(objective.plan.mapped)

    def terms(samples: np.ndarray) -> dict[str, torch.Tensor]:
        found = module(**objective.batch(samples, CPU))
        return {name: value / denominators[name] for name, value in found.items()}

    with torch.no_grad():
        whole = terms(SAMPLES)
        halves = [terms(part) for part in np.split(SAMPLES, 2)]
    assert set(whole) == {"embedding", "attention", "hidden"}
    for name, value in whole.items():
        assert value.isfinite() and value > 0, name
        assert float(halves[0][name] + halves[1][name]) == pytest.approx(float(value), rel=1e-4), name
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.stack(list(terms(SAMPLES).values())).sum()
        loss.backward()
        lacking = [name for name, parameter in module.named_parameters() if parameter.grad is None]
        assert lacking == []
        optimizer.step()
    after = terms(SAMPLES)
    assert float(sum(after.values())) < 0.95 * float(sum(whole.values()))


@pytest.mark.parametrize(
    ("given", "layers"),
    [("uniform", 6), ("last", 1), ("last", 3), ("[1]", 1), ("[4, 1, 4]", 3), ("[2, 2, 2, 2, 2, 2]", 6)],
)
def test_any_map_learns(world: World, given: str, layers: int) -> None:
    objective = world.objective("refbert", f"student.layers={layers}", f"distill.layer_map={given}")
    found = objective.module(**objective.batch(SAMPLES, CPU))
    assert all(value.isfinite() and value > 0 for value in found.values())
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in objective.module.parameters())
