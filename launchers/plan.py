"""``--dry-run``: the resolved configuration, what would run, and what it would take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.profile import Profile
from launchers.readable import count, duration, hours, size
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.costs.extents import Extent, extents
from refbert_dist.costs.rates import CORE, CORES_PER_GPU, CPU, GPU, Rates
from refbert_dist.costs.stages import Place, StageCost, stage_costs
from refbert_dist.costs.work import teacher_shape
from refbert_dist.data.tokens import Part, parts
from refbert_dist.engine.processes import has_cuda_device
from refbert_dist.models.locate import WELL_KNOWN, resolve_model, teacher_info
from refbert_dist.pipeline import STAGES, Stage, check, missing_stages
from refbert_dist.rundir import check_same_experiment

CLUSTER_TOKENS = 10**8
"""A corpus of so many tokens is planned for clusters: it would take this machine weeks."""
CLUSTER_GPUS = (8, 64, 256)

Costs = Mapping[str, StageCost]
"""By stage."""


def show_plan(exp: Experiment, targets: Iterable[str], profile: Profile, console: Console) -> None:
    """Print everything and start nothing."""
    check(exp)
    check_same_experiment(exp)
    console.print(to_yaml(exp), highlight=False, markup=False, soft_wrap=True)
    to_run = {stage.name for stage in missing_stages(exp, targets)}
    stages = [stage for stage in STAGES if stage.wanted(exp)]
    found = extents(exp)
    places = places_of(exp, found, profile)
    costs = {name: stage_costs(exp, found, place) for name, place in places.items()}
    console.print(_made(exp, stages, to_run, places, next(iter(costs.values()))))
    console.print(_taken([stage.name for stage in stages if stage.name in to_run], places, costs))
    for line in [
        *text_remarks(exp, found),
        *rate_remarks(places),
        *_crowding(places),
        *_stage_remarks(exp, to_run, places, costs),
    ]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def places_of(exp: Experiment, found: Mapping[Part, Extent], profile: Profile) -> dict[str, Place]:
    """This machine, or for a large corpus clusters of some sizes; by name."""
    if "corpus" in found and found["corpus"].lengths.tokens >= CLUSTER_TOKENS:
        return {
            f"{gpus} GPUs": Place(rates=Rates(GPU, CORE), processes=gpus, cores=gpus * CORES_PER_GPU)
            for gpus in CLUSTER_GPUS
        }
    processes, cores = profile.processes or exp.launch.processes, len(os.sched_getaffinity(0))
    threads = min(profile.threads or exp.launch.threads or cores, max(1, cores // processes))
    device = GPU if has_cuda_device() else CPU
    place = Place(
        rates=Rates(device, CORE),
        processes=processes,
        threads=1 if device.is_gpu else threads,
        cores=min(processes, cores),
    )
    return {"this machine": place}


def _made(
    exp: Experiment, stages: Iterable[Stage], to_run: set[str], places: Mapping[str, Place], costs: Costs
) -> Table:
    title = f"run.dir {exp.run.dir}   cache.dir {exp.cache.dir}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    here = next(iter(places.values())) if len(places) == 1 else None
    for column in (*(("processes",) if here else ()), "samples", "tokens", "size", "files"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in stages:
        state = "to run" if stage.name in to_run else ("done" if stage.done(exp) else "not needed")
        row = [""] * 4
        if cost := costs.get(stage.name):
            row = [count(cost.samples), count(cost.tokens), "", ""]
            if cost.files:
                row[2:] = [size(cost.bytes), f"{cost.files:,}"]
        if here:
            row.insert(0, str(here.processes if stage.workers != "one" else 1))
        table.add_row(stage.name, state, *row)
    table.caption = "samples and tokens are counted as often as they are processed; size and files are what is left"
    return table


def _taken(to_run: Iterable[str], places: Mapping[str, Place], costs: Mapping[str, Costs]) -> Table:
    gpus = next(iter(places.values())).rates.device.is_gpu
    title = f"{'hours of all GPUs, or cores,' if gpus else 'time of all cores'} / time by the clock"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    for name in ("unit", *places) if gpus else places:
        table.add_column(name, justify="right", no_wrap=True)
    totals = dict.fromkeys(places, StageCost())
    for stage in to_run:
        found = {name: costs[name][stage] for name in places if stage in costs[name]}
        for name, cost in found.items():
            totals[name] += cost
        table.add_row(stage, *_times(list(found.values()), gpus))
    table.add_section()
    table.add_row("all of these", *_times(list(totals.values()), gpus))
    return table


def _times(costs: list[StageCost], gpus: bool) -> list[str]:
    """At each place; on clusters after the unit."""
    if not gpus or not costs:
        return [f"{duration(cost.device_s + cost.core_s)} / {duration(cost.wall_s)}" for cost in costs]
    on_gpu = costs[0].device_s > 0
    found = [f"{hours(cost.device_s if on_gpu else cost.core_s)} / {duration(cost.wall_s)}" for cost in costs]
    return ["GPU-h" if on_gpu else "core-h", *found]


def text_remarks(exp: Experiment, found: Mapping[Part, Extent]) -> Iterator[str]:
    """Where shapes and sizes come from."""
    info = teacher_info(exp.teacher.model)
    weights = count(teacher_shape(info).parameters)
    known = resolve_model(exp.teacher.model) in WELL_KNOWN
    by = "; a shape known by its name, nothing was downloaded" if known else ""
    yield f"teacher: {exp.teacher.model}, {info.layers} layers x {info.hidden}, {weights} weights{by}"
    for part in parts(exp):
        if extent := found.get(part):
            lengths = extent.lengths
            size = f"{count(lengths.samples)} samples of {lengths.mean:.0f} tokens on average"
            yield f"{part}: {size}, {extent.origin}"
        else:
            yield f"{part}: nothing is known of its size before it is prepared; set corpus.expected_tokens"


def rate_remarks(places: Mapping[str, Place]) -> Iterator[str]:
    """What the times are computed with."""
    place = next(iter(places.values()))
    device, core = place.rates.device, place.rates.core
    if not device.is_gpu:
        here = "the teacher as timed just now; all else" if device.basis == "probed" else "constants"
        yield f"times: {here} as measured on {core.name}; another machine may be twice as fast or as slow"
        return
    if device.basis == "probed":
        yield f"times: the teacher as timed just now on this {device.name}; training as assumed of the A100 class"
    else:
        yield (
            f"times: a {device.name} is assumed, not measured: {device.forward['bf16'].flops_s / 1e12:.0f} TFLOP/s in "
            f"bf16 and {device.training.flops_s / 1e12:.0f} in fp32; refbert cache estimate times the teacher on yours"
        )
    cores = place.cores // place.processes
    yield f"       cores as measured on {core.name}; {cores} of them for each GPU"
    disk, total = core.disk_bytes_s / 1e9, core.disk_total_bytes_s / 1e9
    yield f"       a shared disk of {total:.0f} GB/s in all, and {disk:.0f} GB/s for each process, is assumed"


def _crowding(places: Mapping[str, Place]) -> Iterator[str]:
    for place in places.values():
        if not place.rates.device.is_gpu and place.processes > place.cores:
            yield (
                f"{place.processes} processes share {place.cores} cores here, but the time by the clock is that of a "
                "core for each; set launch.processes to the number of cores"
            )


def _stage_remarks(
    exp: Experiment, to_run: set[str], places: Mapping[str, Place], costs: Mapping[str, Costs]
) -> Iterator[str]:
    """What a reader would not guess from the tables."""
    for stage in (name for name in next(iter(costs.values())) if name in to_run):
        largest, place = list(places)[-1], list(places.values())[-1]
        cost = costs[largest][stage]
        if cost.memory_bytes > 1e9:
            yield f"{stage}: {size(cost.memory_bytes)} of memory for each process"
        if cost.read_bytes_s:
            yield f"{stage}: each process reads {cost.read_bytes_s / 1e6:,.0f} MB/s from the cache"
        if stage == "prepare" and cost.used < place.cores:
            yield (
                f"{stage}: {cost.used} process(es) have something to do, because a source file, or a data set of the "
                "hub, is read by one; give a folder of more files"
            )
        if stage.startswith("distill") and cost.used < place.processes:
            batch = (exp.distill.general if stage == "distill-general" else exp.distill.intermediate).batch_size
            workers = "GPUs" if place.rates.device.is_gpu else "processes"
            yield (
                f"{stage}: {cost.used} of {place.processes} {workers} have "
                f"something to do, because a step of {batch} samples is cut into micro-batches of "
                f"engine.micro_batch_size={exp.engine.micro_batch_size}"
            )
