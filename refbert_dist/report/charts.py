"""Charts as pieces of a page: the only module that imports plotly."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
"""Okabe and Ito's, which colour-blind people can tell apart; without the yellow, which white swallows."""
PALE = "#b8bec6"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "hexagon", "cross", "triangle-down")
"""Beside the colours, for names that are more than these."""
GRID = "#e6e8eb"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
SHADES = ((205, 216, 228), (8, 56, 107))
"""Ends of a scale whose worst recedes into the paper."""
LOG_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
MOST_POINTS = 500
"""Points of a line; no screen shows more."""
BUTTONS_HEIGHT, LEGEND_LINE, LEGEND_WIDTH = 34, 29, 440
"""In pixels; the width is that of the narrowest chart."""
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    # A button that would send the data to a service of plotly's makers.
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """Points of one name; several series of one name share an entry in the legend."""

    name: str
    points: Sequence[Point]
    mode: Literal["lines", "markers", "lines+markers"] = "lines"
    hover: str | Sequence[str] = ()
    """A text for each point, or one that stands below the values of all; its lines are parted by newlines."""
    colour: str | None = None
    """None: the next one that is free."""
    symbol: str = "circle"
    size: float = 6
    """Of markers, pixels."""
    width: float = 1.8
    """Of lines, pixels."""
    ringed: bool = False
    """Markers have a black outline."""
    dash: Literal["solid", "dot"] = "solid"


@dataclass(frozen=True)
class Spot:
    """What was found of one name in one place: single values, their middle, and how far that may be off."""

    place: str
    name: str
    points: Sequence[float]
    middle: float
    interval: tuple[float, float] | None = None
    hover: str = ""
    """A text for the middle; its lines are parted by newlines."""


@dataclass(frozen=True)
class Axis:
    """One dimension of parallel coordinates."""

    name: str
    ticks: Mapping[float, str]
    """Height, 0 to 1 -> label."""


def chart(caption: str, series: Sequence[Series], x: str, y: str, levels: Mapping[str, float] | None = None) -> str:
    """Lines or points over two axes with titles ``x`` and ``y``; ``levels`` are horizontal lines with names."""
    free = dict.fromkeys(item.name for item in series if item.colour is None)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(free)}
    # What is drawn last is not hidden by others, and so the order of drawing is not one to read.
    kinds = sorted({item.name for item in series if item.mode == "markers"})
    seen: set[str] = set()
    traces = []
    for item in series:
        rank = {"legendrank": 1001 + kinds.index(item.name)} if item.name in kinds else {}
        traces.append(_trace(item, item.colour or colours[item.name], first=item.name not in seen) | rank)
        seen.add(item.name)
    heights = [value for item in series for _, value in item.points]
    layout = _layout(x, y, 360) | {"showlegend": len(seen) > 1}
    if _spans_decades(heights):
        layout["yaxis"] |= {
            "type": "log",
            "dtick": 1,
            "exponentformat": "power",
            "minor": {"ticks": "outside", "ticklen": 3},
        }
    figure = go.Figure(traces, layout)
    for name, value in (levels or {}).items():
        figure.add_hline(value, line={"dash": "dash", "width": 1, "color": COLOURS[-1]}, annotation_text=name)
    return _html(caption, figure)


def bars(caption: str, values: Mapping[str, float], x: str) -> str:
    """Horizontal bars, the first on top; the values stand beside them."""
    names, lengths = list(values), list(values.values())
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": lengths,
        "y": names,
        "marker": {"color": COLOURS[0]},
        "text": [f"{length:.2f}" for length in lengths],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
    layout = _layout(x, "", 110 + 30 * len(names)) | {"showlegend": False, "bargap": 0.35}
    layout["xaxis"] |= {"range": [0, 1.12 * max(lengths)]}
    layout["yaxis"] |= {"autorange": "reversed", "ticks": "", "showgrid": False}
    return _html(caption, go.Figure([trace], layout))


def parallel(caption: str, axes: Sequence[Axis], lines: Sequence[Series]) -> str:
    """Parallel coordinates: the points of a line are heights, 0 to 1, on one axis after the other.

    Made of plain lines, because plotly's own kind of this chart needs WebGL, which browsers without a GPU lack.
    """
    traces = [_trace(line, line.colour or COLOURS[0], first=True) for line in lines]
    layout = _layout("", "", 440) | {"showlegend": False, "hoverdistance": 12}
    names = [html.escape(axis.name).replace(".", "<br>") for axis in axes]
    layout["margin"] |= {"l": 60, "r": 60, "b": 12, "t": 28 + 15 * max(name.count("<br>") + 1 for name in names)}
    layout["xaxis"] |= {
        "range": [-0.15, len(axes) - 0.6],
        "side": "top",
        "tickvals": list(range(len(axes))),
        "ticktext": names,
        "tickangle": 0,
        "gridcolor": COLOURS[-1],
        "ticks": "",
        "fixedrange": True,
    }
    layout["yaxis"] |= {"range": [-0.05, 1.06], "visible": False, "fixedrange": True}
    figure = go.Figure(traces, layout)
    for place, axis in enumerate(axes):
        for height, label in axis.ticks.items():
            figure.add_annotation(
                x=place,
                y=height,
                text=html.escape(label),
                showarrow=False,
                xanchor="left",
                xshift=4,
                bgcolor="rgba(255,255,255,0.75)",
                borderpad=1,
                font={"size": 11},
            )
    return _html(caption, figure)


def spots(caption: str, found: Sequence[Spot], x: str, known: Sequence[str], level: float | None = None) -> str:
    """One row for each place, from the top, and in it each name.

    Names have the colours of their places among the ``known``; ``level`` is a vertical line.
    """
    places = list(dict.fromkeys(spot.place for spot in found))
    names = [name for name in known if any(spot.name == name for spot in found)]
    traces: list[dict[str, Any]] = []
    for rank, name in enumerate(names):
        mine = [spot for spot in found if spot.name == name]
        heights = [places.index(spot.place) + 0.8 * ((rank + 0.5) / len(names) - 0.5) for spot in mine]
        number = known.index(name)
        look = {"color": COLOURS[number % len(COLOURS)], "symbol": SYMBOLS[number % len(SYMBOLS)]}
        # A little below the middle, whose interval would cover them.
        lower = [height + 0.25 / len(names) for height in heights]
        single = [(value, height) for spot, height in zip(mine, lower, strict=True) for value in spot.points]
        common = {"type": "scatter", "mode": "markers", "name": html.escape(name), "legendgroup": name}
        traces.append(
            {
                **common,
                "x": [value for value, _ in single],
                "y": [height for _, height in single],
                "marker": {**look, "size": 5, "opacity": 0.45},
                "showlegend": False,
                "hoverinfo": "x+name",
            }
        )
        reach = [spot.interval or (spot.middle, spot.middle) for spot in mine]
        traces.append(
            {
                **common,
                "x": [spot.middle for spot in mine],
                "y": heights,
                "error_x": {
                    "type": "data",
                    "array": [high - spot.middle for spot, (_, high) in zip(mine, reach, strict=True)],
                    "arrayminus": [spot.middle - low for spot, (low, _) in zip(mine, reach, strict=True)],
                    "color": look["color"],
                    "thickness": 1.6,
                    "width": 3,
                },
                "marker": {**look, "size": 10},
                "hovertext": [_lines(spot.hover) for spot in mine],
                "hoverinfo": "text",
            }
        )
    # Below the buttons, which plotly puts into the upper corner, and above the plot.
    top = BUTTONS_HEIGHT + LEGEND_LINE * (1 + sum(map(_legend_width, names)) // LEGEND_WIDTH)
    layout = _layout(x, "", top + 70 + len(places) * max(50, 17 * len(names))) | {"showlegend": len(names) > 1}
    layout["legend"] |= {"y": 1.0, "yanchor": "bottom"}
    layout["margin"] |= {"t": top}
    layout["yaxis"] |= {
        "range": [len(places) - 0.5, -0.5],
        "tickvals": list(range(len(places))),
        "ticktext": [html.escape(place) for place in places],
        "showgrid": False,
        "ticks": "",
    }
    figure = go.Figure(traces, layout)
    for between in range(1, len(places)):
        figure.add_hline(between - 0.5, line={"width": 1, "color": GRID})
    if level is not None:
        figure.add_vline(level, line={"dash": "dash", "width": 1, "color": COLOURS[-1]})
    return _html(caption, figure)


def shade(share: float) -> str:
    """The colour of what lies at ``share``, 0 (worst) to 1 (best), of a scale."""
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(*SHADES, strict=True))


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most ``MOST_POINTS``, evenly chosen, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(place * step)] for place in range(MOST_POINTS)]


def library() -> str:
    """The script that draws the charts of a page."""
    script: str = get_plotlyjs()
    return script


def _spans_decades(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) >= LOG_FROM * min(known)


def _trace(series: Series, colour: str, first: bool) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": series.mode,
        "name": html.escape(series.name),
        "legendgroup": series.name,
        "showlegend": first,
        "x": [x for x, _ in series.points],
        "y": [y for _, y in series.points],
        "line": {"color": colour, "width": series.width, "dash": series.dash},
        "marker": {"color": colour, "symbol": series.symbol, "size": series.size},
    }
    if series.ringed:
        trace["marker"]["line"] = {"color": "black", "width": 2}
    if isinstance(series.hover, str):
        trace |= {"hovertext": _lines(series.hover), "hoverinfo": "x+y+text"}
    elif series.hover:
        trace |= {"hovertext": [_lines(text) for text in series.hover], "hoverinfo": "text"}
    return trace


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _legend_width(name: str) -> int:
    """About how many pixels an entry of a legend takes."""
    return 48 + 7 * len(name)


def _layout(x: str, y: str, height: int) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": PALE, "ticks": "outside", "tickcolor": PALE}
    axis |= {"automargin": True, "separatethousands": True}
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 64, "r": 20, "t": 28, "b": 48},
        "font": {"family": FONT, "size": 12, "color": "#24292f"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 12}},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        "xaxis": {**axis, "title": {"text": html.escape(x), "standoff": 8}},
        "yaxis": {**axis, "title": {"text": html.escape(y), "standoff": 8}},
    }


def _html(caption: str, figure: go.Figure) -> str:
    drawing = figure.to_html(
        full_html=False, include_plotlyjs=False, config=CONFIG, default_height=f"{figure.layout.height}px"
    )
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{drawing}</figure>"
