"""``refbert cache estimate``: what the teacher cache of an experiment takes, and whether it pays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.plan import CLUSTER_TOKENS, rate_remarks, text_remarks
from launchers.readable import count, hours, size
from refbert_dist import preflight
from refbert_dist.cache.codec import bytes_per_token, check_codec
from refbert_dist.cache.contract import Scope, scope_part
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.costs.extents import CHARACTERS_PER_TOKEN, Extent, extents, sample_texts
from refbert_dist.costs.rates import CORE, CORES_PER_GPU, CPU, GPU, Rates
from refbert_dist.costs.stages import Place, StageCost, stage_costs
from refbert_dist.data.tokens import Part, tokens_artifact
from refbert_dist.engine.processes import has_cuda_device
from refbert_dist.errors import UserError
from refbert_dist.models.locate import teacher_info

if TYPE_CHECKING:
    from refbert_dist.costs.probe import Probe

CODECS = ("fp16", "int8", "int4", "pq")
TRIALS = (1, 10, 100)
CLOSE = 1.1
"""A way that takes no more than this many times the least time is as good, and the one that stores less is advised."""

ONLINE, REFERENCES, TARGETS = "online", "references only", "targets too"
WAYS = {
    ONLINE: ("distill.targets=online", "references.states=online"),
    REFERENCES: ("distill.targets=online", "references.states=cache"),
    TARGETS: ("distill.targets=cache", "references.states=cache"),
}
"""From nothing stored to all."""


@dataclass(frozen=True)
class Way:
    """One way to come by the teacher's states, on one device."""

    build: StageCost
    """Once."""
    training: StageCost
    """Every trial: all systems, all epochs."""

    def seconds(self, trials: int) -> float:
        """Of the device, for so many trials."""
        return self.build.device_s + trials * self.training.device_s


def estimate(exp: Experiment, dry_run: bool) -> None:
    """Print what the cache takes by codec, what it costs and saves, and what is advised.

    The teacher is timed on this device, unless it is a ``dry_run``. A corpus for clusters is also planned for the GPU
    that :mod:`refbert_dist.costs.rates` assumes, where there is none here.
    """
    preflight.check(exp)
    scope: Scope = "general" if exp.corpus else "task"
    found = extents(exp, CHARACTERS_PER_TOKEN if dry_run else _characters_per_token(exp))
    part = scope_part(scope)
    if part not in found:
        where = f"corpus.path is '{exp.corpus.path}'" if exp.corpus else f"task.path is '{exp.task and exp.task.path}'"
        hint = "set corpus.expected_tokens, or run" if exp.corpus else "run"
        raise UserError(f"{where}, whose size is not known before it is prepared; {hint} refbert prepare first")
    probe = None if dry_run else _probe(exp, found[part])
    here = probe.rates if probe else Rates(GPU if has_cuda_device() else CPU, CORE)
    places = [Place(rates=here, processes=1, cores=1)]
    if found[part].lengths.tokens >= CLUSTER_TOKENS and not here.device.is_gpu:
        places.append(Place(rates=Rates(GPU, CORE), processes=1, cores=CORES_PER_GPU))
    console = Console()
    for line in text_remarks(exp, found):
        _print(console, line)
    if exp.corpus:
        console.print(_sizes(exp, found, places[0], "general"))
    if "train" in found:
        console.print(_sizes(exp, found, places[0], "task"))
    _print(console, _probed(probe) if probe else "no probe of the teacher was made: --dry-run")
    for place in places:
        ways = _ways(exp, found, place, scope)
        for line in rate_remarks(place):
            _print(console, line)
        console.print(_times(ways, place, scope))
    for line in _advice(exp, ways, place, found[part]):
        _print(console, line)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


# -- what is measured --------------------------------------------------------------------------------------------------


def _characters_per_token(exp: Experiment) -> float:
    """Of a sample of the corpus by the teacher's own tokenizer, where both are at hand and it matters."""
    if exp.corpus is None or tokens_artifact(exp, "corpus").complete:
        return CHARACTERS_PER_TOKEN
    from refbert_dist.data.tokenizer import load_tokenizer

    texts = sample_texts(exp.corpus)
    if not texts:
        return CHARACTERS_PER_TOKEN
    tokenizer = load_tokenizer(exp.teacher.model)
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    return sum(map(len, texts)) / max(1, tokens)


def _probe(exp: Experiment, extent: Extent) -> Probe:
    from refbert_dist.costs.probe import probe_teacher
    from refbert_dist.tracking.quiet import quiet_libraries

    quiet_libraries()
    return probe_teacher(exp, extent.lengths)


def _probed(probe: Probe) -> str:
    weights = "; random weights of the teacher's shape, which are as fast" if probe.random_weights else ""
    return f"probe: the teacher takes {count(probe.tokens_s)} tokens/s on a {probe.device.name}{weights}"


# -- what it takes -----------------------------------------------------------------------------------------------------


def _changed(exp: Experiment, *overrides: str) -> Experiment:
    return parse_experiment(apply_overrides(exp.model_dump(mode="json"), ["cache.layers=auto", *overrides]))


def _ways(exp: Experiment, found: Mapping[Part, Extent], place: Place, scope: Scope) -> dict[str, Way]:
    ways = {}
    for name, overrides in WAYS.items():
        if name == REFERENCES and not exp.references.count:
            continue
        costs = stage_costs(_changed(exp, *overrides), found, place)
        ways[name] = Way(costs.get(f"cache-{scope}", StageCost()), costs[f"distill-{scope}"])
    return ways


def _sizes(exp: Experiment, found: Mapping[Part, Extent], place: Place, scope: Scope) -> Table:
    """Of every codec, for what may be stored."""
    width = teacher_info(exp.teacher.model).hidden
    stored: dict[str, tuple[str, ...]] = {"references": WAYS[REFERENCES]} if exp.references.count else {}
    stored["targets"] = (*WAYS[TARGETS], "distill.weights.attention=0")
    if exp.distill.weights.attention:
        stored["+attention"] = WAYS[TARGETS]
    table = Table(
        title=f"the teacher cache, {scope} (cache.codec is {exp.cache.codec})",
        title_justify="left",
        caption="references: states of references alone; targets: mapped layers, too; +attention: also their inputs",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("codec", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for name in stored:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("files", justify="right", no_wrap=True)
    for codec in CODECS:
        try:
            check_codec(codec, width)
        except UserError:
            table.add_row(codec, *["-"] * (1 + 2 * len(stored)))
            continue
        row = []
        for overrides in stored.values():
            cost = stage_costs(_changed(exp, *overrides, f"cache.codec={codec}"), found, place)[f"cache-{scope}"]
            row += [size(cost.bytes), f"{cost.files:,}"]
        table.add_row(codec, f"{bytes_per_token(codec, width):.0f}", *row)
    return table


def _times(ways: Mapping[str, Way], place: Place, scope: Scope) -> Table:
    title = f"{_unit(place)}s: cache-{scope} once, distill-{scope} (all systems, all epochs) in every trial"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stored", no_wrap=True)
    for column in ("cache", *(f"{trials} trial{'s' * (trials > 1)}" for trials in TRIALS), "reads"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, way in ways.items():
        times = [way.build.device_s, *(way.seconds(trials) for trials in TRIALS)]
        read = f"{size(way.training.read_bytes_s)}/s" if way.training.read_bytes_s else ""
        table.add_row(name, *map(hours, times), read)
    return table


def _unit(place: Place) -> str:
    return "GPU-hour" if place.rates.device.is_gpu else "core-hour"


def _advice(exp: Experiment, ways: Mapping[str, Way], place: Place, extent: Extent) -> Iterator[str]:
    optim = exp.distill.general if exp.corpus else exp.distill.intermediate
    samples = extent.lengths.samples
    epochs = optim.steps_taken(samples) * min(optim.batch_size, samples) / samples
    names = list(ways)
    for less, more in pairwise(names):
        yield f"{more} against {less}: {_break_even(ways[less], ways[more], epochs)}"
    free = shutil.disk_usage(next(path for path in (exp.cache.dir, *exp.cache.dir.resolve().parents) if path.exists()))
    fitting = {name: way for name, way in ways.items() if way.build.bytes < free.free}
    for name in ways.keys() - fitting.keys():
        yield f"{name}: {size(ways[name].build.bytes)} are more than the {size(free.free)} that are free for cache.dir"
    least = min(way.seconds(1) for way in fitting.values())
    chosen = next(name for name, way in fitting.items() if way.seconds(1) <= CLOSE * least)
    yield f"advice for one trial: {chosen} ({' '.join(WAYS[chosen])})"
    yield f"because {_reason(chosen, fitting, place)}"
    best = min(fitting, key=lambda name: fitting[name].seconds(TRIALS[-1]))
    if best != chosen:
        yield f"for a search of {TRIALS[-1]} trials: {best} ({' '.join(WAYS[best])})"


def _break_even(less: Way, more: Way, epochs: float) -> str:
    """After how many epochs times trials the way that stores more has paid for its cache."""
    saved = (less.training.device_s - more.training.device_s) / epochs
    extra = more.build.device_s - less.build.device_s
    if saved <= 0:
        return "never pays; reading it takes longer than computing it"
    return f"pays from {max(extra / saved, 0):,.1f} epochs x trials on (one trial here has {epochs:.3g} epochs)"


def _reason(chosen: str, ways: Mapping[str, Way], place: Place) -> str:
    others = {name: way for name, way in ways.items() if name != chosen}
    mine = ways[chosen]
    parts = [f"it takes {hours(mine.seconds(1))} {_unit(place)}s"]
    parts += [f"{name} {hours(way.seconds(1))}" for name, way in others.items()]
    text = ", ".join(parts)
    if mine.build.bytes:
        text += f"; it stores {size(mine.build.bytes)} and reads {size(mine.training.read_bytes_s)}/s for each device"
    return text
