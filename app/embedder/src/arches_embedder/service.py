"""The HTTP surface: OpenAI-compatible embeddings, health, metrics."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from quart import Quart, Response, request
from werkzeug.exceptions import HTTPException

from arches_embedder.model import DIMENSIONS, NAME, Embedding
from arches_embedder.settings import Settings

log = logging.getLogger(__name__)

BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
BODY_SECONDS = 10.0
PROBE_SECONDS = 2.0
PROBE_VALID_SECONDS = 1.0


class Embedder(Protocol):
    """What the service needs of a model."""

    def embed(self, text: str) -> Embedding:
        """The vector of one text; called from one thread only."""


class Refused(Exception):
    """The request cannot be served; becomes an application/problem+json answer."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class Metrics:
    """What Prometheus reads. A registry of its own, so that tests can make many services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("embedder_requests", "Requests by answer.", ["status"], registry=self.registry)
        self.texts = Counter("embedder_texts", "Texts embedded.", registry=self.registry)
        self.tokens = Counter("embedder_tokens", "Tokens read.", registry=self.registry)
        self.waiting = Gauge("embedder_requests_admitted", "Requests being served or waiting.", registry=self.registry)
        self.seconds = Histogram(
            "embedder_request_seconds", "Time of a request, waiting included.", buckets=BUCKETS, registry=self.registry
        )


class Worker:
    """One thread that embeds, and the bound on who may wait for it.

    A request hands in its texts one at a time, so concurrent requests take turns: a search's single query waits for one
    text of each other request, never for all of a large batch. A client that goes away stops costing after
    its current text.
    """

    def __init__(self, embedder: Embedder, max_requests: int, metrics: Metrics) -> None:
        self._embedder, self._max_requests, self._metrics = embedder, max_requests, metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._admitted = 0

    async def embed(self, texts: list[str]) -> list[Embedding]:
        """The vectors of the texts, in order.

        Raises:
            Refused: 503, too many requests are waiting already.
        """
        if self._admitted >= self._max_requests:
            raise Refused(503, f"{self._admitted} requests are waiting; try again in a second", {"Retry-After": "1"})
        self._admitted += 1
        self._metrics.waiting.set(self._admitted)
        try:
            done = [await self._run(text) for text in texts]
        finally:
            self._admitted -= 1
            self._metrics.waiting.set(self._admitted)
        self._metrics.texts.inc(len(done))
        self._metrics.tokens.inc(sum(embedding.tokens for embedding in done))
        return done

    async def probe(self) -> None:
        """Embed one word like any request does. Raises TimeoutError when the thread does not get to it."""
        async with asyncio.timeout(PROBE_SECONDS):
            await self._run("ready")

    def close(self) -> None:
        """Let the thread end after its current text."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, text: str) -> Embedding:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embedder.embed, text)


def create_app(settings: Settings, embedder: Embedder) -> Quart:
    """The service around a loaded model."""
    app = Quart("arches_embedder")
    app.config["MAX_CONTENT_LENGTH"] = None  # _body() has the limit: Quart's own answers before the client has sent all
    metrics = Metrics()
    worker = Worker(embedder, settings.max_requests, metrics)
    ready = _cached(worker.probe)

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        started = time.perf_counter()
        texts, encoding = _parse(await _body(settings.max_body_bytes), request.mimetype, settings)
        done = await worker.embed(texts)
        tokens = sum(embedding.tokens for embedding in done)
        metrics.seconds.observe(time.perf_counter() - started)
        return _json(
            200,
            {
                "object": "list",
                "model": NAME,
                "data": [
                    {"object": "embedding", "index": i, "embedding": _encode(embedding, encoding)}
                    for i, embedding in enumerate(done)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            },
        )

    @app.get("/health/live")
    async def live() -> Response:
        return _json(200, {"status": "live"})

    @app.get("/health/ready")
    async def ready_() -> Response:
        try:
            await ready()
        except TimeoutError:
            raise Refused(503, f"no text was embedded within {PROBE_SECONDS} s", {"Retry-After": "1"}) from None
        return _json(200, {"status": "ready", "model": NAME, "dimensions": DIMENSIONS})

    @app.get("/metrics")
    async def metrics_() -> Response:
        return Response(generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @app.after_request
    async def count(response: Response) -> Response:
        if request.path == "/v1/embeddings":
            metrics.requests.labels(response.status_code).inc()
        return response

    @app.after_serving
    async def close() -> None:
        worker.close()

    _answer_errors(app)
    return app


def _answer_errors(app: Quart) -> None:
    """Every error is an application/problem+json answer; what we did not expect is in the journal."""

    @app.errorhandler(Refused)
    async def refused(error: Refused) -> Response:
        return _problem(error.status, error.detail, error.headers)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        return _problem(error.code or 500, error.description or error.name)

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        log.error("request failed", exc_info=error, extra={"request_id": request.headers.get("X-Request-Id")})
        return _problem(500, "the embedder failed; its journal says why")


async def _body(limit: int) -> bytes:
    """The request's body. One that is too large is read to its end: a client that still sends sees no answer."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.body:
                size += len(part)
                body = body + part if size <= limit else bytearray()
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS} s") from None
    if size > limit:
        raise Refused(413, f"the body is larger than {limit} bytes")
    return bytes(body)


def _parse(body: bytes, mimetype: str, settings: Settings) -> tuple[list[str], str]:
    """The texts and the wanted encoding of a request, or Refused with a 4xx that says what to change."""
    if mimetype != "application/json":
        raise Refused(415, "send the request as application/json")
    try:
        # UnicodeDecodeError is a ValueError; nesting beyond the interpreter's limit is a RecursionError.
        document = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON in UTF-8") from None
    if not isinstance(document, dict):
        raise Refused(422, 'the body is not an object like {"model": ..., "input": ...}')
    if unknown := sorted(document.keys() - {"model", "input", "encoding_format", "dimensions", "user"}):
        raise Refused(422, f"unknown field {unknown[0][:40]!a}")
    if document.get("model") != NAME:
        raise Refused(404, f"model must be {NAME!r}: this service has no other")
    if document.get("dimensions", DIMENSIONS) != DIMENSIONS:
        raise Refused(422, f"dimensions must be {DIMENSIONS}")
    encoding = document.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise Refused(422, "encoding_format must be float or base64")
    return _texts(document.get("input"), settings), encoding


def _texts(given: object, settings: Settings) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= settings.max_texts:
        raise Refused(422, f"input must be a text or a list of 1 to {settings.max_texts} texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not 1 <= len(text) <= settings.max_characters:
            raise Refused(422, f"input {i} must be a text of 1 to {settings.max_characters} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(422, f"input {i} holds half a surrogate pair, which is no character") from None
    return texts


def _encode(embedding: Embedding, encoding: str) -> Any:
    """A JSON list (eight decimals: more than float32 has at these magnitudes), or base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(embedding.vector.astype("<f4").tobytes()).decode()
    return np.round(embedding.vector.astype(np.float64), 8).tolist()


def _cached(check: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """The check, asked at most once per second however often health is."""
    proven_until = 0.0
    turn = asyncio.Lock()

    async def cached() -> None:
        nonlocal proven_until
        async with turn:
            if time.monotonic() >= proven_until:
                await check()
                proven_until = time.monotonic() + PROBE_VALID_SECONDS

    return cached


def _json(status: int, document: dict[str, Any]) -> Response:
    return Response(json.dumps(document, separators=(",", ":")), status, content_type="application/json")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    document = {"type": "about:blank", "status": status, "detail": detail}
    return Response(json.dumps(document), status, headers, content_type="application/problem+json")
