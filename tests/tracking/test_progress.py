import logging

import pytest

from refbert_dist.tracking import progress as module
from refbert_dist.tracking.progress import Progress, format_duration, format_progress, progress_path, read_progress


class Clock:
    """A clock that only moves when told, so that nothing here depends on how quick the machine is."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def test_the_status_file_holds_rate_and_remaining_time(tmp_path, clock):
    with Progress("distill", 200, "steps", run_dir=tmp_path) as progress:
        progress.update(0)
        clock.now += 10
        progress.update(40, loss=3.21)
        state = read_progress(tmp_path, "distill")
    assert (state["stage"], state["done"], state["total"], state["unit"]) == ("distill", 40, 200, "steps")
    assert state["rate"] == pytest.approx(4.0)
    assert state["eta_s"] == pytest.approx(40.0)
    assert state["numbers"] == {"loss": 3.21}


def test_without_a_total_there_is_a_rate_and_no_remaining_time(tmp_path, clock):
    with Progress("prepare", None, "samples", run_dir=tmp_path) as progress:
        progress.update(0)
        clock.now += 1
        progress.update(50)
    state = read_progress(tmp_path, "prepare")
    assert (state["rate"], state["eta_s"], state["total"]) == (50.0, None, None)


def test_after_a_resume_the_rate_counts_only_what_this_process_did(tmp_path, clock):
    with Progress("distill", 2000, "steps", run_dir=tmp_path) as progress:
        progress.update(1000)
        clock.now += 10
        progress.update(1020)
    assert read_progress(tmp_path, "distill")["rate"] == pytest.approx(2.0)


def test_the_rate_follows_the_recent_window(tmp_path, clock):
    with Progress("distill", 10_000, "steps", run_dir=tmp_path) as progress:
        done = 0
        progress.update(done)
        for pace in (100, 1):
            for _ in range(120):
                clock.now += 1
                done += pace
                progress.update(done)
    assert read_progress(tmp_path, "distill")["rate"] == pytest.approx(1.0)


def test_the_file_is_written_at_most_twice_a_second_and_at_the_end(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr(module, "replace_json", lambda path, state: written.append(state["done"]))
    with Progress("s", 100, "steps", run_dir=tmp_path) as progress:
        for done in range(11):
            progress.update(done)
            clock.now += 0.125
    assert written == [0, 4, 8, 10]


def test_one_log_line_every_ten_seconds_and_one_at_the_end(clock, caplog):
    caplog.set_level(logging.INFO)
    with Progress("distill-general", 100, "steps") as progress:
        for done in range(36):
            progress.update(done, loss=2.0)
            clock.now += 1
    assert [record.getMessage() for record in caplog.records] == [
        "distill-general  10 %  10/100 steps  1 steps/s  ETA 1:30  loss 2",
        "distill-general  20 %  20/100 steps  1 steps/s  ETA 1:20  loss 2",
        "distill-general  30 %  30/100 steps  1 steps/s  ETA 1:10  loss 2",
        "distill-general  35 %  35/100 steps  1 steps/s  ETA 1:05  loss 2",
    ]


def test_numbers_stay_until_they_are_replaced(tmp_path):
    with Progress("s", 10, "steps", run_dir=tmp_path) as progress:
        progress.update(1, loss=2.0, rate=0.1)
        progress.update(2, loss=1.0)
    assert read_progress(tmp_path, "s")["numbers"] == {"loss": 1.0, "rate": 0.1}


def test_a_disabled_one_leaves_no_trace(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with Progress("s", 10, "steps", run_dir=tmp_path, enabled=False) as progress:
        progress.update(10)
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_fails_leaves_how_far_it_came(tmp_path):
    with pytest.raises(RuntimeError), Progress("s", 10, "steps", run_dir=tmp_path) as progress:
        progress.update(1)
        progress.update(4)
        raise RuntimeError
    assert read_progress(tmp_path, "s")["done"] == 4


@pytest.mark.parametrize("content", [None, "", '{"done": 1'])
def test_a_missing_or_broken_file_is_no_progress(tmp_path, content):
    if content is not None:
        path = progress_path(tmp_path, "s")
        path.parent.mkdir()
        path.write_text(content)
    assert read_progress(tmp_path, "s") is None


def test_the_line_is_as_documented():
    state = {"stage": "distill-general", "done": 840, "total": 2000, "unit": "steps", "rate": 12.3, "eta_s": 95.0}
    assert (
        format_progress(state | {"numbers": {"loss": 3.21}})
        == "distill-general  42 %  840/2000 steps  12.3 steps/s  ETA 1:35  loss 3.21"
    )
    unknown = {"stage": "x", "done": 0, "total": 0, "unit": "tokens", "rate": None, "eta_s": None, "numbers": {}}
    assert format_progress(unknown) == "x  100 %  0/0 tokens"
    assert format_progress(unknown | {"done": 5, "total": None}) == "x  5 tokens"
    assert "123457 tokens/s" in format_progress(unknown | {"rate": 123456.7})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (95, "1:35"), (59.7, "1:00"), (3599.9, "1:00:00"), (363_695, "101:01:35")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
