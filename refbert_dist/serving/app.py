"""The web application: what is asked and answered over HTTP.

    POST /predict   {"texts": ["a text", ...]} or {"texts": [["a", "b"], ...]}   ->   {"answers": [{...}, ...]}
    GET  /health    what is served
    GET  /metrics   for Prometheus

Everything that is wrong is said as ``{"error": "one sentence"}``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from refbert_dist.errors import UserError
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.references.guards import TextPair
from refbert_dist.serving.batcher import Batcher, BusyError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server lets happen to it."""

    request_bytes: int = 4 << 20
    """Of a request's body."""
    request_texts: int = 1024
    """In a request."""
    waiting_texts: int = 16384
    """Of all requests that wait."""
    batch_texts: int = 256
    """Joined into one batch, from several requests."""
    body_s: float = 10.0
    """For a client to send a request's body."""


class Figures:
    """What ``/metrics`` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("refbert_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.texts = Counter("refbert_texts", "Texts answered.", registry=self.registry)
        self.seconds = Histogram("refbert_request_seconds", "Of answered predictions.", registry=self.registry)
        self.batches = Histogram(
            "refbert_batch_texts", "Texts in a batch.", registry=self.registry, buckets=[4**power for power in range(7)]
        )
        self.waiting = Gauge("refbert_waiting_texts", "Texts that wait.", registry=self.registry)


class Service:
    """A pipeline behind HTTP."""

    def __init__(self, pipeline: RefBertPipeline, limits: Limits, token: str | None) -> None:
        """``token``: who asks for predictions or metrics must know it; None lets everybody."""
        self.pipeline = pipeline
        self.limits = limits
        self._token = token
        self._figures = Figures()
        self.batcher = Batcher(pipeline, limits.batch_texts, limits.waiting_texts, self._figures.batches.observe)
        self._figures.waiting.set_function(lambda: self.batcher.waiting)
        self.app = Starlette(
            routes=[
                Route("/predict", self._counted(self._predict), methods=["POST"]),
                Route("/health", self._counted(self._health)),
                Route("/metrics", self._counted(self._metrics)),
            ],
            exception_handlers={HTTPException: _said, Exception: _failed},
        )

    def _counted(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def counted(request: Request) -> Response:
            status = 500
            try:
                response = await handle(request)
                status = response.status_code
                return response
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                self._figures.requests.labels(request.url.path, status).inc()

        return counted

    async def _predict(self, request: Request) -> Response:
        started = time.monotonic()
        self._check_token(request)
        texts = self._texts(await self._body(request))
        try:
            future = self.batcher.submit(texts)
        except BusyError:
            raise HTTPException(503, "too many texts are waiting; try again", {"Retry-After": "1"}) from None
        answers = await asyncio.wrap_future(future)
        self._figures.texts.inc(len(texts))
        self._figures.seconds.observe(time.monotonic() - started)
        return JSONResponse({"answers": answers})

    async def _health(self, _: Request) -> Response:
        pipeline = self.pipeline
        return JSONResponse(
            {
                "status": "ok",
                "model": pipeline.folder.name,
                "labels": pipeline.labels,
                "sentences": pipeline.sentences,
                "references": pipeline.references,
                "known_texts": 0 if pipeline.bank is None else len(pipeline.bank),
            }
        )

    async def _metrics(self, request: Request) -> Response:
        self._check_token(request)
        return PlainTextResponse(generate_latest(self._figures.registry))

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise HTTPException(
                401, "the token is missing or wrong; send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > self.limits.request_bytes:
                        raise HTTPException(
                            413,
                            f"the request has more than {self.limits.request_bytes:,} bytes; send fewer or shorter "
                            "texts",
                            {"Connection": "close"},
                        )
        except TimeoutError:
            raise HTTPException(
                408, f"the request did not arrive within {self.limits.body_s:g} s", {"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise HTTPException(499, "the client has gone") from None
        return bytes(body)

    def _texts(self, body: bytes) -> list[TextPair]:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise HTTPException(400, f"the request is not JSON ({reason}); send {self._example()}") from None
        texts = asked.get("texts") if isinstance(asked, dict) else None
        if not isinstance(texts, list) or not all(_is_text(text) for text in texts):
            raise HTTPException(400, f"the request has no list of texts; send {self._example()}")
        if len(texts) > self.limits.request_texts:
            raise HTTPException(
                413, f"the request has {len(texts):,} texts; send at most {self.limits.request_texts:,} at once"
            )
        try:
            return self.pipeline.checked(texts)
        except UserError as error:
            raise HTTPException(400, str(error)) from None

    def _example(self) -> str:
        return '{"texts": [["a", "b"]]}' if self.pipeline.sentences == 2 else '{"texts": ["a text"]}'


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


async def _said(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return JSONResponse({"error": "the server failed; its log says how"}, 500)
