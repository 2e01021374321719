import signal
import threading

import pytest

from refbert_dist.engine.stop import SIGNALS, watching_signals
from refbert_dist.errors import StoppedError


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_may_end_at_any_moment(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}; run the same command again"), watching_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_disturb_what_the_first_has_begun() -> None:
    tidied = []
    with pytest.raises(StoppedError, match="SIGUSR2"), watching_signals():
        try:
            signal.raise_signal(signal.SIGUSR2)
        finally:
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)
    assert tidied


def test_inside_the_loop_it_is_only_noted_and_not_forgotten_afterwards() -> None:
    with watching_signals() as outer:
        with watching_signals() as flag, flag.deferred():
            assert flag is outer and not flag.requested
            signal.raise_signal(signal.SIGTERM)
            assert flag.requested
        with watching_signals() as later:
            assert later.requested
    with watching_signals() as fresh:
        assert not fresh.requested


def test_a_signal_does_not_make_a_stop_of_an_error_on_its_way_out() -> None:
    with pytest.raises(ZeroDivisionError), watching_signals() as flag:
        try:
            with flag.deferred():
                1 / 0  # noqa: B018
        finally:
            signal.raise_signal(signal.SIGTERM)


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with watching_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
