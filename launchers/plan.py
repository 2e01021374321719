"""``--dry-run``: the resolved configuration, what would run, and what it would take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.profile import LocalProfile, Profile, SlurmProfile
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


@dataclass(frozen=True)
class Site:
    """Somewhere to run: what every stage gets there, and what it takes."""

    places: Mapping[str, Place]
    """By stage."""
    costs: Mapping[str, StageCost]
    """By stage."""

    @classmethod
    def of(cls, exp: Experiment, found: Mapping[Part, Extent], places: Mapping[str, Place]) -> Site:
        """The costs of all stages, each at its place."""
        costs = {stage: stage_costs(exp, found, place).get(stage) for stage, place in places.items()}
        return cls(places, {stage: cost for stage, cost in costs.items() if cost})

    @property
    def place(self) -> Place:
        """The most capable one."""
        return max(self.places.values(), key=lambda place: (place.rates.device.is_gpu, place.processes))


def show_plan(exp: Experiment, targets: Iterable[str], profile: Profile, console: Console) -> None:
    """Print everything and start nothing."""
    check(exp)
    check_same_experiment(exp)
    console.print(to_yaml(exp), highlight=False, markup=False, soft_wrap=True)
    to_run = {stage.name for stage in missing_stages(exp, targets)}
    stages = [stage for stage in STAGES if stage.wanted(exp)]
    found = extents(exp)
    lines: list[str] = []
    if isinstance(profile, SlurmProfile):
        from launchers.cluster.plan import places_on, show_jobs

        lines = show_jobs(exp, targets, profile, console)
        sites = {"this profile": Site.of(exp, found, places_on(exp, profile, stages))}
    else:
        sites = sites_of(exp, found, profile, [stage.name for stage in stages])
    console.print(_made(exp, stages, to_run, sites))
    console.print(_taken([stage.name for stage in stages if stage.name in to_run], sites))
    for line in [
        *text_remarks(exp, found),
        *rate_remarks(next(iter(sites.values())).place),
        *_crowding(sites),
        *_stage_remarks(exp, to_run, sites),
        *lines,
    ]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def sites_of(
    exp: Experiment, found: Mapping[Part, Extent], profile: LocalProfile, stages: Iterable[str]
) -> dict[str, Site]:
    """This machine, or for a large corpus clusters of some sizes; by name."""
    stages = tuple(stages)
    if "corpus" in found and found["corpus"].lengths.tokens >= CLUSTER_TOKENS:
        places = {
            f"{gpus} GPUs": Place(rates=Rates(GPU, CORE), processes=gpus, cores=gpus * CORES_PER_GPU)
            for gpus in CLUSTER_GPUS
        }
    else:
        processes, cores = profile.processes or exp.launch.processes, len(os.sched_getaffinity(0))
        threads = min(profile.threads or exp.launch.threads or cores, max(1, cores // processes))
        device = GPU if has_cuda_device() else CPU
        place = Place(
            rates=Rates(device, CORE),
            processes=processes,
            threads=1 if device.is_gpu else threads,
            cores=min(processes, cores),
        )
        places = {"this machine": place}
    return {name: Site.of(exp, found, dict.fromkeys(stages, place)) for name, place in places.items()}


def _made(exp: Experiment, stages: Iterable[Stage], to_run: set[str], sites: Mapping[str, Site]) -> Table:
    title = f"run.dir {exp.run.dir}   cache.dir {exp.cache.dir}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    here = next(iter(sites.values()))
    for column in (*(("processes",) if len(sites) == 1 else ()), "samples", "tokens", "size", "files"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in stages:
        state = "to run" if stage.name in to_run else ("done" if stage.done(exp) else "not needed")
        row = [""] * 4
        if cost := here.costs.get(stage.name):
            row = [count(cost.samples), count(cost.tokens), "", ""]
            if cost.files:
                row[2:] = [size(cost.bytes), f"{cost.files:,}"]
        if len(sites) == 1:
            row.insert(0, str(here.places[stage.name].processes if stage.workers in ("world", "groups") else 1))
        table.add_row(stage.name, state, *row)
    table.caption = "samples and tokens are counted as often as they are processed; size and files are what is left"
    return table


def _taken(to_run: Iterable[str], sites: Mapping[str, Site]) -> Table:
    gpus = next(iter(sites.values())).place.rates.device.is_gpu
    title = f"{'hours of all GPUs, or cores,' if gpus else 'time of all cores'} / time by the clock"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    for name in ("unit", *sites) if gpus else sites:
        table.add_column(name, justify="right", no_wrap=True)
    totals = dict.fromkeys(sites, StageCost())
    for stage in to_run:
        found = {name: site.costs[stage] for name, site in sites.items() if stage in site.costs}
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
            hint = "; set corpus.expected_tokens" if part == "corpus" else ""
            yield f"{part}: nothing is known of its size before it is prepared{hint}"


def rate_remarks(place: Place) -> Iterator[str]:
    """What the times are computed with."""
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


def _crowding(sites: Mapping[str, Site]) -> Iterator[str]:
    for place in (site.place for site in sites.values()):
        if not place.rates.device.is_gpu and place.processes > place.cores:
            yield (
                f"{place.processes} processes share {place.cores} cores here, but the time by the clock is that of a "
                "core for each; set launch.processes to the number of cores"
            )


def _stage_remarks(exp: Experiment, to_run: set[str], sites: Mapping[str, Site]) -> Iterator[str]:
    """What a reader would not guess from the tables."""
    largest = list(sites.values())[-1]
    for stage, cost in largest.costs.items():
        if stage not in to_run:
            continue
        place = largest.places[stage]
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
