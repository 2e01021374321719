from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment, tiny_values

from refbert_dist.artifacts import Artifact
from refbert_dist.cache.contract import states_artifact
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.costs.extents import Extent, extents
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.lookup import bm25_cost
from refbert_dist.costs.rates import CORE, CPU, GPU, Rates
from refbert_dist.costs.stages import Place, StageCost, stage_costs
from refbert_dist.data.tokens import Part, parts, tokens_artifact
from refbert_dist.engine.distributed import process_group
from refbert_dist.pipeline import stage_named
from refbert_dist.references.neighbours import neighbours_artifact
from refbert_dist.rundir import open_run

WIKIPEDIA = {
    "teacher": {"model": "bert-base-uncased"},
    "cache": {"codec": "int8", "precision": "bf16"},
    "corpus": {"path": "somebody/text", "expected_tokens": 3_000_000_000},
    "distill": {"targets": "online", "general": {"epochs": 3, "batch_size": 256}},
    "engine": {"micro_batch_size": 8},
}


def core(processes: int = 1, threads: int = 1) -> Place:
    return Place(rates=Rates(CPU, CORE), processes=processes, threads=threads, cores=processes)


def gpus(count: int) -> Place:
    return Place(rates=Rates(GPU, CORE), processes=count, cores=8 * count)


def wikipedia(*overrides: str) -> Experiment:
    return parse_experiment(apply_overrides(WIKIPEDIA, overrides))


def costs(place: Place, *overrides: str) -> dict[str, StageCost]:
    exp = wikipedia(*overrides)
    return stage_costs(exp, extents(exp), place)


def size(artifact: Artifact) -> tuple[int, int]:
    """Bytes of the shards, files without the manifest and what has no data."""
    names = artifact.names()
    files = sum(1 + len((artifact.sidecar(name) or {})["files"]) for name in names if not name.startswith("recipe"))
    return artifact.manifest()["bytes"], files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Prepared, looked up, and its general cache built."""
    exp = tiny_experiment(tmp_path_factory.mktemp("costs"), "cache.codec=int8", "references.stored_count=3")
    with process_group(60), open_run(exp):
        for stage in ("prepare", "retrieve", "cache-general"):
            stage_named(stage).run(exp)
    return exp


def test_samples_tokens_bytes_and_files_are_those_that_come_out(built: Experiment) -> None:
    made = stage_costs(built, extents(built), core())
    manifests = [tokens_artifact(built, part).manifest() for part in parts(built)]
    for name in ("samples", "tokens"):
        assert getattr(made["prepare"], name) == sum(manifest[name] for manifest in manifests)
    cost, (stored, files) = made["cache-general"], size(states_artifact(built, "general"))
    assert cost.bytes == pytest.approx(stored, rel=0.05)
    assert cost.files == pytest.approx(files, abs=4)  # a sample that does not fit opens the next shard
    neighbours = [size(neighbours_artifact(built, part)) for part in parts(built)]
    assert made["retrieve"].bytes == pytest.approx(sum(stored for stored, _ in neighbours), rel=0.2)
    assert made["retrieve"].files == sum(files for _, files in neighbours)


def test_every_evaluated_row_is_looked_up_among_the_training_rows() -> None:
    task = {"name": "MNLI", "path": "x", "test_file": "test_matched.tsv"}
    exp = parse_experiment({"teacher": WIKIPEDIA["teacher"], "task": task})
    sizes: dict[Part, int] = {"train": 400_000, "dev": 10_000, "dev-mismatched": 10_000, "test": 10_000}
    assert tuple(sizes) == parts(exp)
    found = {part: Extent(Lengths.of([30]).scaled(count), "", True) for part, count in sizes.items()}
    made = stage_costs(exp, found, core())
    assert made["prepare"].samples == made["retrieve"].samples == 430_000
    del found["test"], found["dev-mismatched"]
    fewer = stage_costs(exp, found, core())["retrieve"]
    lookup = bm25_cost(10_000, 400_000, 30)
    assert made["retrieve"].core_s - fewer.core_s == pytest.approx(2 * (lookup.search_s + lookup.build_s))


def test_a_step_counts_for_every_system_and_phase(built: Experiment) -> None:
    made = stage_costs(built, extents(built), core())
    assert made["distill-general"].samples == 2 * 6 * 12
    assert made["distill-task"].samples == 2 * (4 + 4) * 12
    assert made["finetune"].samples == 4 * 16


def test_what_is_stored_is_what_is_chosen() -> None:
    lengths = extents(wikipedia())["corpus"].lengths
    references = costs(gpus(8))["cache-general"]
    assert references.samples == 1_000_000
    assert references.bytes == 1_000_000 * lengths.cut(64).mean * 772
    targets = costs(gpus(8), "distill.targets=cache")["cache-general"]
    assert targets.bytes == pytest.approx(lengths.tokens * 8 * 772, rel=1e-6)
    plain = costs(gpus(8), "distill.targets=cache", "distill.weights.attention=0")["cache-general"]
    assert plain.bytes == targets.bytes / 2
    assert costs(gpus(8), "distill.targets=cache", "cache.codec=fp16")["cache-general"].bytes / targets.bytes == (
        pytest.approx(1536 / 772)
    )
    assert "cache-general" not in costs(gpus(8), "references.states=online")


def test_time_falls_with_devices_as_long_as_there_is_work() -> None:
    few, many = costs(gpus(8)), costs(gpus(64))
    assert few["retrieve"].wall_s > 6 * many["retrieve"].wall_s
    assert few["cache-general"].device_s == pytest.approx(many["cache-general"].device_s)
    # One stream is read by one process, and 256 / 8 micro-batches keep 32 GPUs busy.
    assert few["prepare"].wall_s == many["prepare"].wall_s
    assert (few["distill-general"].used, many["distill-general"].used) == (8, 32)
    assert costs(gpus(256))["distill-general"].wall_s == many["distill-general"].wall_s


def test_online_targets_take_the_teachers_pass_and_cached_ones_the_disk() -> None:
    online, cached = costs(gpus(8)), costs(gpus(8), "distill.targets=cache")
    assert online["distill-general"].device_s > cached["distill-general"].device_s
    assert online["distill-general"].read_bytes_s < cached["distill-general"].read_bytes_s / 20
    none = costs(gpus(8), "references.states=online")
    assert none["distill-general"].read_bytes_s == 0
    assert none["distill-general"].device_s > online["distill-general"].device_s


def test_edited_copies_take_the_teachers_pass() -> None:
    given = ("systems=[tinybert,own]", "distill.targets=cache")
    own, edited = (costs(gpus(8), *given, f"references.own_edits={share}")["distill-general"] for share in (0, 0.3))
    assert edited.device_s > own.device_s
    assert edited.read_bytes_s < own.read_bytes_s


def test_texts_of_pairs_take_it_in_the_task_stage(built: Experiment) -> None:
    own, each = (
        stage_costs(exp, extents(exp), gpus(8))
        for exp in (
            built.model_copy(update={"systems": ("tinybert", "own"), "references": references})
            for references in (built.references, built.references.model_copy(update={"own_text": "each"}))
        )
    )
    assert each["distill-task"].device_s > own["distill-task"].device_s
    assert each["distill-task"].read_bytes_s < own["distill-task"].read_bytes_s
    assert each["distill-general"] == own["distill-general"]


def test_a_core_encodes_beside_computing_and_a_gpu_does_not_wait() -> None:
    one = {codec: costs(core(), f"cache.codec={codec}")["cache-general"].device_s for codec in ("int8", "pq")}
    values = costs(core())["cache-general"].bytes / 772 * 768
    assert one["pq"] - one["int8"] == pytest.approx(values * 65e-9, rel=0.2)
    assert costs(core(threads=2))["cache-general"].wall_s == pytest.approx(one["int8"] / 2)


def test_a_part_of_which_nothing_is_known_has_no_cost(tmp_path: Path) -> None:
    exp = parse_experiment({**WIKIPEDIA, "corpus": {"path": "somebody/text"}})
    assert stage_costs(exp, extents(exp), core()) == {}
    values: dict[str, Any] = tiny_values(tmp_path)
    task_only = parse_experiment({**values, "corpus": None})
    found: dict[Part, Extent] = {"train": Extent(Lengths.of([20] * 64), "", True)}
    assert set(stage_costs(task_only, found, core())) == {
        "prepare",
        "retrieve",
        "cache-task",
        "finetune",
        "distill-task",
    }


def test_a_teacher_timed_here_replaces_what_is_known_of_its_class() -> None:
    device = GPU.with_forward("bf16", 2.0, "this GPU")
    assert (device.basis, device.name, device.training) == ("probed", "this GPU", GPU.training)
    assert device.forward["bf16"].flops_s == 2 * GPU.forward["bf16"].flops_s
    assert device.forward["fp32"] == GPU.forward["fp32"]
    assert CPU.with_forward("fp32", 0.5, "old").training.flops_s == 0.5 * CPU.training.flops_s
