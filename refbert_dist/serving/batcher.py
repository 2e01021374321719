"""One thread runs the model; requests that come meanwhile wait, and are answered together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from refbert_dist.references.guards import TextPair

Answers = list[dict[str, Any]]


class BusyError(Exception):
    """More texts are waiting than may."""


@dataclass(frozen=True)
class _Request:
    texts: Sequence[TextPair]
    future: Future[Answers] = field(default_factory=Future)


class Batcher:
    """Joins requests into batches: under load they are large, and a lone request does not wait for others."""

    def __init__(
        self,
        answer: Callable[[Sequence[TextPair]], Answers],
        batch_texts: int,
        waiting_texts: int,
        seen: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start the thread.

        Args:
            answer: one answer for each text.
            batch_texts: given to ``answer`` at once, at most, unless a single request has more.
            waiting_texts: that may wait, beside those that are being answered.
            seen: told the size of every batch.
        """
        self._answer = answer
        self._batch_texts = batch_texts
        self._waiting_texts = waiting_texts
        self._seen = seen
        self._requests: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher")
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        with self._changed:
            return sum(len(request.texts) for request in self._requests)

    def submit(self, texts: Sequence[TextPair]) -> Future[Answers]:
        """Have texts answered; raises :class:`BusyError` when too many wait already. To cancel is to be left out."""
        request = _Request(texts)
        with self._changed:
            waiting = sum(len(other.texts) for other in self._requests)
            if self._closed or (waiting and waiting + len(texts) > self._waiting_texts):
                raise BusyError
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            texts = [text for request in batch for text in request.texts]
            self._seen(len(texts))
            try:
                answers = self._answer(texts)
            except Exception as error:  # whatever it is, the next batch shall be answered
                for request in batch:
                    request.future.set_exception(error)
                continue
            start = 0
            for request in batch:
                stop = start + len(request.texts)
                request.future.set_result(answers[start:stop])
                start = stop

    def _next(self) -> list[_Request]:
        """The next requests, as many as make a batch; none once it is closed and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or self._closed)
                batch: list[_Request] = []
                size = 0
                while self._requests and (not batch or size + len(self._requests[0].texts) <= self._batch_texts):
                    batch.append(self._requests.popleft())
                    size += len(batch[-1].texts)
            if not batch:
                return []
            # Whose client has gone needs no answer.
            if wanted := [request for request in batch if request.future.set_running_or_notify_cancel()]:
                return wanted
