"""Charts: what is drawn, and on which axes."""

import json
import re
from typing import Any

import pytest

from refbert_dist.report.charts import (
    MOST_POINTS,
    Axis,
    Series,
    Spot,
    bars,
    chart,
    parallel,
    shade,
    spots,
    thinned,
)


def drawn(text: str) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Traces, layout and configuration that a chart hands to the library."""
    match = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",", text)
    assert match
    decoder, place, found = json.JSONDecoder(), match.end(), []
    for _ in range(3):
        place += len(text[place:]) - len(text[place:].lstrip(" \n,"))
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([4.0, 3.0, 0.5], None), ([4.0, 0.1], "log"), ([4.0, 0.1, 0.0], None), ([4.0, None, 0.1], "log"), ([None], None)],
)
def test_an_axis_is_logarithmic_where_values_span_decades(values: list[float | None], kind: str | None) -> None:
    _, layout, _ = drawn(chart("c", [Series("loss", list(enumerate(values)))], "step", "loss"))
    assert layout["yaxis"].get("type") == kind


def test_series_of_one_name_have_one_colour_and_one_entry_in_the_legend() -> None:
    series = [Series("a", [(0, 1)]), Series("b", [(0, 2)]), Series("a", [(1, 3)])]
    traces, layout, _ = drawn(chart("c", series, "x", "y"))
    assert [trace["showlegend"] for trace in traces] == [True, True, False]
    assert traces[0]["line"]["color"] == traces[2]["line"]["color"] != traces[1]["line"]["color"]
    assert layout["showlegend"]
    assert not drawn(chart("c", series[:1], "x", "y"))[1]["showlegend"]


def test_levels_are_drawn_across() -> None:
    _, layout, _ = drawn(chart("c", [Series("a", [(0, 1)])], "x", "y", {"teacher": 0.9}))
    assert layout["shapes"][0]["y0"] == layout["shapes"][0]["y1"] == 0.9
    assert layout["annotations"][0]["text"] == "teacher"


def test_no_button_sends_data_away() -> None:
    assert drawn(bars("c", {"a": 0.5}, "share"))[2]["showSendToCloud"] is False


def test_bars_keep_their_order_from_the_top() -> None:
    traces, layout, _ = drawn(bars("c", {"large": 0.9, "small": 0.1}, "share"))
    assert traces[0]["y"] == ["large", "small"] and traces[0]["x"] == [0.9, 0.1]
    assert layout["yaxis"]["autorange"] == "reversed"


def test_spots_stand_in_rows_from_the_top_with_their_intervals() -> None:
    found = [
        Spot("MRPC", "b", [1.0, 3.0], 2.0, (0.5, 4.0), "two\nlines"),
        Spot("CoLA", "b", [5.0], 5.0),
        Spot("CoLA", "a", [6.0], 6.0),
    ]
    traces, layout, _ = drawn(spots("c", found, "points", ["a", "b", "none"], level=0.0))
    single, middle = (trace for trace in traces if trace["name"] == "b")
    assert single["x"] == [1.0, 3.0, 5.0] and middle["x"] == [2.0, 5.0]
    assert middle["error_x"]["array"] == [2.0, 0.0] and middle["error_x"]["arrayminus"] == [1.5, 0.0]
    assert middle["hovertext"][0] == "two<br>lines"
    assert layout["yaxis"]["ticktext"] == ["MRPC", "CoLA"] and layout["yaxis"]["range"] == [1.5, -0.5]
    assert [round(height) for height in middle["y"]] == [0, 1]
    assert any(line.get("x0") == line.get("x1") == 0.0 for line in layout["shapes"])
    alone, _, _ = drawn(spots("c", found[:1], "points", ["a", "b"]))
    assert alone[1]["marker"]["color"] == middle["marker"]["color"]


def test_parallel_coordinates_name_axes_and_their_ends() -> None:
    axes = [Axis("student.layers", {0.0: "1", 1.0: "3"}), Axis("accuracy", {0.0: "0.5"})]
    _, layout, _ = drawn(parallel("c", axes, [Series("0001", [(0, 1.0), (1, 0.0)])]))
    assert layout["xaxis"]["ticktext"] == ["student<br>layers", "accuracy"]
    assert [(item["x"], item["y"], item["text"]) for item in layout["annotations"]] == [
        (0, 0.0, "1"),
        (0, 1.0, "3"),
        (1, 0.0, "0.5"),
    ]


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    points = [(float(step), float(step)) for step in range(10 * MOST_POINTS)]
    kept = thinned(points)
    assert len(kept) == MOST_POINTS == len(set(kept))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_shades_go_from_pale_to_dark() -> None:
    assert shade(0.0) == "#cdd8e4" and shade(1.0) == "#08386b"
    assert int(shade(0.3)[1:3], 16) > int(shade(0.6)[1:3], 16)
