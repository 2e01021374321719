"""Reading ahead: what the next passes need is made in the background while the current one computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], make: Callable[[T], R], ahead: int) -> Generator[R]:
    """``make(item)`` of every item in order, at most ``ahead`` of them made beforehand by one thread.

    An error in ``make`` is raised where its result is asked for. With ``ahead`` 0 nothing runs in the background.
    """
    if ahead == 0:
        yield from map(make, items)
        return
    rest = iter(items)
    executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        pending: deque[Future[R]] = deque(executor.submit(make, item) for item in islice(rest, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(make, item) for item in islice(rest, 1))
            yield result
    finally:
        executor.shutdown(cancel_futures=True)
