"""Structure only: what is called when. How long it takes is not tested."""

import pytest

from refbert_dist.stages import latency
from refbert_dist.stages.latency import median_latencies, taken_in_turns


def test_passes_are_interleaved_after_one_warm_up_each() -> None:
    calls: list[str] = []
    found = median_latencies({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert list(found) == ["a", "b"] and all(seconds >= 0 for seconds in found.values())


def test_the_median_of_each_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    durations = {"a": iter([50.0, 1.0, 900.0, 3.0, 2.0]), "b": iter([0.5, 9.0, 7.0, 8.0, 0.25])}

    def call(name: str) -> None:
        clock["now"] += next(durations[name])

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["now"])
    found = median_latencies({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=4)
    assert found == {"a": 2.5, "b": 7.5}  # the first of each is the warm-up


def test_a_turn_is_filled_and_preceded_by_a_pass_that_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    seconds = {"short": 0.25, "long": 2.0}
    calls: list[str] = []
    turns: list[int] = []

    def call(name: str) -> None:
        calls.append(name)
        clock["now"] += seconds[name]

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["now"])
    systems = {name: (lambda name=name: call(name)) for name in seconds}
    found = taken_in_turns(systems, 2, turn_s=0.75, done=lambda: turns.append(len(calls)))
    assert found == {"short": [[0.25] * 3] * 2, "long": [[2.0]] * 2}
    # A long pass does not notice what ran before; so it is not run in vain.
    assert calls == ["short", "long", *(["short"] * 4 + ["long"]) * 2]
    assert turns == [6, 7, 11, 12]
