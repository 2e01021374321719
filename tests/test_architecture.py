"""Imports go only down: the layout of the folders is the architecture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    "refbert_dist.errors",
    "refbert_dist.faiss_library",
    "refbert_dist.onnx_library",
    "refbert_dist.artifacts",
    "refbert_dist.config",
    "refbert_dist.models",
    "refbert_dist.losses",
    "refbert_dist.tracking",
    "refbert_dist.data",
    ("refbert_dist.engine", "refbert_dist.cache"),
    "refbert_dist.references",
    "refbert_dist.augment",
    "refbert_dist.bank",
    "refbert_dist.inference",
    "refbert_dist.serving",
    "refbert_dist.objectives",
    "refbert_dist.costs",
    "refbert_dist.stages",
    "refbert_dist.preflight",
    "refbert_dist.rundir",
    "refbert_dist.pipeline",
    "refbert_dist.diagnostics",
    "refbert_dist.report",
    "refbert_dist.benchmark",
    "refbert_dist.table",
    "refbert_dist.worker",
    "refbert_dist.local",
    "tune",
    "launchers",
]
"""From the ground up; a room may import those before it, and rooms in one tuple may import each other's modules as long
as no circle comes of it (checked apart)."""

ONE_IMPORTER = {
    "deepspeed": "refbert_dist/engine/distributed.py",
    "mlflow": "refbert_dist/tracking/mlflow_store.py",
    "faiss": "refbert_dist/faiss_library.py",
    "onnxruntime": "refbert_dist/inference/onnx_model.py",
    "starlette": "refbert_dist/serving/app.py",
    "uvicorn": "refbert_dist/serving/server.py",
    "submitit": "launchers/cluster/batch.py",
    "ray": "tune/driver.py",
    "optuna": "tune/sampling.py",
    "plotly": "refbert_dist/report/charts.py",
}


def floor_of(module: str) -> int | None:
    for height, rooms in enumerate(FLOORS):
        for room in rooms if isinstance(rooms, tuple) else (rooms,):
            if module == room or module.startswith(room + "."):
                return height
    return None


def modules() -> Iterator[tuple[str, Path]]:
    for top in ("refbert_dist", "tune", "launchers"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # The model's files lie side by side in an exported folder, too, and find each other there.
            assert node.level == int(node.module == "configuration_refbert"), f"{path} imports relatively"
            source = f"{module.rpartition('.')[0]}.{node.module}" if node.level else node.module
            found |= {source, *(f"{source}.{name.name}" for name in node.names)}
    return found


GRAPH = {name: imports(name, path) for name, path in modules()}


def test_imports_go_only_down() -> None:
    wrong = []
    for module, wanted in GRAPH.items():
        height = floor_of(module)
        if module == "refbert_dist" or module == "refbert_dist._auto":  # the facade, which names what it loads lazily
            continue
        assert height is not None, f"{module} has no floor; give it one"
        wrong += [f"{module} -> {name}" for name in wanted if (other := floor_of(name)) is not None and other > height]
    assert wrong == []


def test_there_is_no_circle() -> None:
    known = {module: {name for name in wanted if name in GRAPH} for module, wanted in GRAPH.items()}
    seen: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in seen:
            for wanted in known[module] - {"refbert_dist"}:
                visit(wanted, (*trail, module))
            seen.add(module)

    for module in known:
        if module != "refbert_dist":
            visit(module, ())


@pytest.mark.parametrize(("package", "only"), ONE_IMPORTER.items())
def test_heavy_packages_have_one_importer(package: str, only: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for name, path in modules()
        if any(wanted == package or wanted.startswith(package + ".") for wanted in GRAPH[name])
    }
    assert importers == {only}


def test_the_models_files_need_only_torch_and_transformers() -> None:
    files = {"refbert_dist.models.configuration_refbert", "refbert_dist.models.modeling_refbert"}
    tops = {name.partition(".")[0] for file in files for name in GRAPH[file] if not name.startswith(tuple(files))}
    assert tops - set(sys.stdlib_module_names) == {"torch", "transformers"}


@pytest.mark.parametrize(
    "module",
    ["refbert_dist", "refbert_dist.pipeline", "launchers.cli", "launchers.plan", "launchers.search", "launchers.table"],
)
def test_planning_loads_no_heavy_package(module: str) -> None:
    heavy = {"torch", "transformers", "datasets", "deepspeed", "mlflow", "faiss", "sklearn", "scipy", "pandas"}
    heavy |= {"ray", "optuna", "plotly"}
    if module == "launchers.search":
        heavy.remove("optuna")  # To plan a search is to draw from its space.
    code = f"import sys, {module}; print({heavy!r} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_room_is_empty() -> None:
    for name, path in modules():
        if path.name == "__init__.py":
            assert any(other.startswith(name + ".") for other in GRAPH), f"{name} is empty"
