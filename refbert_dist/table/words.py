"""A table for people: its tables, and what they say, in words. Points are hundredths, as GLUE has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from refbert_dist.table.choice import held_out_scores
from refbert_dist.table.config import METHOD, variant_of
from refbert_dist.table.estimates import Estimate
from refbert_dist.table.statistics import LEVEL, RESAMPLES
from refbert_dist.table.summary import (
    AVERAGE,
    BASELINE,
    CLAIMED_GAIN,
    CLAIMED_SHARE,
    TEACHER,
    Spread,
    Summary,
)
from refbert_dist.tracking.progress import format_duration

DASH = "-"


@dataclass(frozen=True)
class Part:
    """A table with a heading and a sentence or two."""

    heading: str
    words: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def parts(found: Summary) -> Iterator[Part]:
    """All tables, in order."""
    yield _scores(found)
    if BASELINE in found.students:
        yield _differences(
            found,
            f"Difference to {found.label(BASELINE)}",
            "In points, same seeds",
            [(found.label(system), system, BASELINE) for system in found.students if system != BASELINE],
        )
    controls = [name for name in found.students if name not in (BASELINE, METHOD) and not variant_of(name)]
    if METHOD in found.students and controls:
        words = f"What {found.label(METHOD)} has beyond each control, in points, same seeds"
        pairs = [(found.label(control), METHOD, control) for control in controls]
        yield _differences(found, f"{found.label(METHOD)} less its controls", words, pairs, "less")
    compared = [
        (f"{found.label(one)} less {found.label(other)}", one, other)
        for other, one in combinations([name for name in found.students if name == METHOD or variant_of(name)], 2)
        if found.difference(one, other)
    ]
    if compared:
        yield _differences(found, "Variants against each other", "In points, same seeds", compared)
    if found.table.choose:
        yield _rates(found)
    yield _details(found)
    yield _budgets(found)


def conditions(found: Summary) -> str:
    """What all rows have in common, and what they were made by."""
    first = found.rows[0]
    rows = {task: found.rows_of(task, found.systems[0])[0] for task in found.tasks}
    sizes = "; ".join(f"{task}: {row.train or '?'} rows to train on, {row.n} scored" for task, row in rows.items())
    commits = ", ".join(dict.fromkeys(row.commit or "unknown" for row in found.rows))
    corpus = f"general stage on {first.corpus}" if first.corpus else "no general stage"
    return f"Teacher {first.teacher}, student {first.student}, {corpus}. {sizes}. Commit {commits}."


# -- what they say -----------------------------------------------------------------------------------------------------


def verdicts(found: Summary) -> list[str]:
    """Sentences that follow from the intervals."""
    students = found.students
    if METHOD not in students or BASELINE not in students:
        return [
            f"Nothing can be said of the method: the table has no {METHOD if METHOD not in students else BASELINE}."
        ]
    method, baseline = found.label(METHOD), found.label(BASELINE)
    by_task = found.difference(METHOD, BASELINE)
    said = [f"{method} against {baseline}: {_by_verdict(by_task)}."]
    if single := [task for task, each in by_task.items() if task != AVERAGE and len(each.points) == 1]:
        said.append(
            f"One seed alone on {', '.join(single)}: the interval is of rows, and another seed may say otherwise."
        )
    if AVERAGE in by_task and len(found.tasks) > 1:
        average = by_task[AVERAGE]
        said.append(
            f"On average over {len(found.tasks)} tasks: {average.verdict}, {_points(average)} points; "
            f"{baseline} has {100 * (found.average(BASELINE) or 0.0):.1f}."
        )
    gain, share = found.gain(METHOD, BASELINE), found.share(METHOD)
    if gain:
        said.append(_claim(f"Relative gain over {baseline}", gain, CLAIMED_GAIN, "+.1f", "BERT-base on GLUE"))
    if share:
        said.append(_claim("Share of the teacher's score", share, CLAIMED_SHARE, ".1f", "BERT-base on GLUE"))
    return [*said, *_unequal(found)]


def _by_verdict(by_task: Mapping[str, Estimate]) -> str:
    where: dict[str, list[str]] = {}
    for task, estimate in by_task.items():
        if task != AVERAGE:
            where.setdefault(estimate.verdict, []).append(f"{task} ({_points(estimate)})")
    return "; ".join(f"{verdict} on {', '.join(tasks)}" for verdict, tasks in where.items()) or "no seed in common"


def _claim(what: str, found: Estimate, claimed: float, form: str, of: str) -> str:
    value, number = _percent(found, form), f"{100 * claimed:{form}} %"
    if found.low is None or found.high is None:
        judged = "not known without the answers"
    elif found.low > claimed:
        judged = "above the claim"
    elif found.high < claimed:
        judged = "below the claim"
    else:
        judged = "this interval neither confirms nor refutes the claim"
    return f"{what}: {value}; claimed for {of}: {number}; here: {judged}."


def _unequal(found: Summary) -> Iterator[str]:
    """Students that are compared but had another budget."""
    for task in found.tasks:
        budgets: dict[tuple[int | None, int | None], list[str]] = {}
        for system in found.students:
            for row in found.rows_of(task, system):
                named = budgets.setdefault((row.steps, row.samples), [])
                if system not in named:
                    named.append(system)
        if len(budgets) > 1:
            each = "; ".join(
                f"{', '.join(who)}: {steps} steps, {samples} samples" for (steps, samples), who in budgets.items()
            )
            yield f"The budget is NOT equal on {task}: {each}."


# -- the tables --------------------------------------------------------------------------------------------------------


def _scores(found: Summary) -> Part:
    metrics = "; ".join(f"{task}: {' and '.join(scores.metrics)}" for task, scores in found.by_task.items())
    rows = []
    for system in found.systems:
        average = found.average(system)
        share = found.share(system) if system != TEACHER else None
        cells = [_spread(found.score(task, system)) for task in found.tasks]
        ends = [DASH if average is None else f"{100 * average:.1f}", DASH if share is None else _percent(share, ".1f")]
        rows.append([found.label(system), *cells, *ends])
    words = (
        "Mean of a task's metrics in points, with the standard deviation over seeds and, in brackets, how many; the "
        f"share of the teacher's average with a {100 * LEVEL:.0f} % interval. {metrics}."
    )
    return Part("Scores", words, ["system", *found.tasks, "average", "of the teacher"], rows)


def _differences(
    found: Summary, heading: str, words: str, pairs: Sequence[tuple[str, str, str]], first: str = "system"
) -> Part:
    """``pairs``: the name of a row, a system, and what is subtracted from its scores."""
    rows = []
    for name, system, other in pairs:
        by_task = found.difference(system, other)
        cells = [_points(by_task[task]) if task in by_task else DASH for task in (*found.tasks, AVERAGE)]
        rows.append([name, *cells])
    words += (
        f"; {100 * LEVEL:.0f} % intervals of {RESAMPLES:,} resamples of dev rows and seeds, * where they leave out 0. "
        "One interval in twenty leaves it out by chance."
    )
    return Part(heading, words, [first, *found.tasks, AVERAGE], rows)


def _details(found: Summary) -> Part:
    rows = []
    for task, scores in found.by_task.items():
        for system in found.systems:
            if (score := found.score(task, system)) is None:
                continue
            each = [
                f"{metric} {_spread(found.metric(task, system, metric), counted=False)}" for metric in scores.metrics
            ]
            share = found.share(system, [task]) if system != TEACHER else None
            shown = DASH if share is None else f"{100 * share.value:.1f} %"
            rows.append([task, found.label(system), ", ".join(each), str(len(score.points)), shown])
    return Part("Every metric", "In points.", ["task", "system", "metrics", "seeds", "of the teacher"], rows)


def _rates(found: Summary) -> Part:
    """How each student's rate was chosen."""
    choose = found.table.choose
    assert choose
    labels = {variant_of(system) or system: found.label(system) for system in found.students}
    rows = []
    for (task, name), by_rate in held_out_scores(found.table).items():
        taken = found.table.rate_factors.get(task, {}).get(name)
        rows.append([task, labels.get(name, name), *(_held_out_score(by_rate, rate, taken) for rate in choose.rates)])
    words = (
        f"Score in points on {100 * choose.held_out:g} % of the training rows, which were held out from teacher, "
        "students and references, by the factor on the rates of the task stage; mean over "
        f"{len(choose.seeds)} seed{'s' if len(choose.seeds) > 1 else ''}. In brackets the rate that was taken."
    )
    return Part("Rates", words, ["task", "system", *(f"x {rate:g}" for rate in choose.rates)], rows)


def _held_out_score(by_rate: Mapping[float, float], rate: float, taken: float | None) -> str:
    if rate not in by_rate:
        return DASH
    score = f"{100 * by_rate[rate]:.1f}"
    return f"[{score}]" if rate == taken else score


def _budgets(found: Summary) -> Part:
    rows = []
    for task in found.tasks:
        for system in found.systems:
            mine = [row for row in found.rows_of(task, system) if row.steps]
            if not mine:
                continue
            first = mine[0]
            batch = DASH if not first.samples or not first.steps else f"{first.samples / first.steps:.1f}"
            seconds = [row.seconds for row in mine if row.seconds is not None]
            rows.append(
                [
                    *(
                        task,
                        found.label(system),
                        _count(first.params),
                        _count(first.steps),
                        batch,
                        _count(first.samples),
                    ),
                    format_duration(float(np.mean(seconds))) if seconds else DASH,
                    DASH if first.gflop is None else f"{first.gflop:,.0f}",
                ]
            )
    words = (
        "Of all training: of students both stages, of the teacher its fine-tuning. Time is the mean over seeds; GFLOP "
        "of matrix products, by formula, without what was cached before."
    )
    headings = ["task", "system", "parameters", "steps", "samples a step", "samples", "h:min:s", "GFLOP"]
    return Part("Budget", words, headings, rows)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _spread(score: Spread | None, counted: bool = True) -> str:
    if score is None:
        return DASH
    deviation = "" if score.deviation is None else f" ± {100 * score.deviation:.1f}"
    return f"{100 * score.mean:.1f}{deviation}" + (f" ({len(score.points)})" if counted else "")


def _points(found: Estimate) -> str:
    """``+1.2 [-0.3, 2.8]``, with a star where the interval leaves out 0."""
    if found.low is None or found.high is None:
        return f"{100 * found.value:+.1f}"
    star = "*" if found.verdict in ("helps", "hurts") else ""
    return f"{100 * found.value:+.1f}{star} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _percent(found: Estimate, form: str) -> str:
    value = f"{100 * found.value:{form}} %"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{100 * found.low:{form}}, {100 * found.high:{form}}]"


def _count(number: int | None) -> str:
    return DASH if number is None else f"{number:,}"
