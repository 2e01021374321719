import threading
import time

import pytest

from refbert_dist.engine.prefetch import prefetched


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_everything_comes_in_order(ahead: int) -> None:
    assert list(prefetched(range(20), lambda item: item * item, ahead)) == [item * item for item in range(20)]


def test_only_so_many_are_made_beforehand_and_by_another_thread() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def make(item: int) -> int:
        made.append(item)
        threads.add(threading.get_ident())
        return item

    source = prefetched(range(100), make, 3)
    next(source)
    deadline = time.monotonic() + 10
    while len(made) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3], "one is in use, three are ready, nothing else"
    assert threads != {threading.get_ident()}
    source.close()


def test_an_error_is_raised_where_its_result_is_asked_for() -> None:
    source = prefetched([4, 2, 0, 1], lambda item: 4 // item, 2)
    assert [next(source), next(source)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        next(source)


def test_closing_it_ends_the_thread() -> None:
    source = prefetched(range(1000), lambda item: item, 2)
    next(source)
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
