"""Traces: a span for each request, with its calls to Postgres, Redis and the embedder below it.

Every span is sent to the collector on this host, which decides what is kept. Nothing here may hurt a request: spans
wait in a queue of fixed length, a thread sends them, and what cannot be sent is dropped and counted. Spans say what was
done, never with which values: no query string, no parameters of SQL or Redis, no text of an exception (Postgres repeats
values in it); the log line of the same trace id has what people need.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import structlog
from hypercorn.typing import HTTPScope
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from redis.asyncio import Redis

from .metrics import Metrics
from .settings import Settings

QUEUE = 2048  # spans that wait; about 4 MiB when full
BATCH = 256
EVERY = 1.0  # seconds between two batches
SEND_PATIENCE = 2.0  # seconds for one batch, all tries together
FLUSH_PATIENCE = 2.0  # seconds, at most, for what is left when the process leaves
UNTRACED = "/health/"  # asked every few seconds by machines

PROPAGATOR = TraceContextTextMapPropagator()
log = structlog.get_logger()


class Tracing:
    """The tracer of one application. When it is off, everything here is free and does nothing."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._provider: TracerProvider | None = None
        self._calls: trace.TracerProvider = trace.NoOpTracerProvider()
        if settings.tracing_enabled:
            self._sender = _Sender(settings.tracing_endpoint, metrics)
            self._provider = TracerProvider(sampler=_Everything(), resource=_resource(settings), shutdown_on_exit=False)
            self._provider.add_span_processor(_Queue(self._sender, metrics))
            self._calls = _DiscreetProvider(self._provider)
        self._tracer = self._calls.get_tracer("arches_api")

    def start(self) -> None:
        """Statements of asyncpg become spans from now on, in the whole process."""
        if self._provider is not None:
            AsyncPGInstrumentor().instrument(tracer_provider=self._calls)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Sends what is left, for FLUSH_PATIENCE seconds at most."""
        if self._provider is None:
            return
        AsyncPGInstrumentor().uninstrument()  # type: ignore[no-untyped-call]
        self._sender.end_by(time.monotonic() + FLUSH_PATIENCE)
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, FLUSH_PATIENCE)
        self._sender.interrupt()

    def redis(self, client: Redis) -> None:
        """Commands of this client become spans."""
        if self._provider is not None:
            RedisInstrumentor().instrument_client(client, tracer_provider=self._calls)

    def http(self, client: httpx.AsyncClient) -> None:
        """Calls of this client become spans and carry `traceparent`."""
        if self._provider is not None:
            HTTPXClientInstrumentor().instrument_client(client, tracer_provider=self._calls)

    def request(self, scope: HTTPScope, request_id: str) -> AbstractContextManager[Span]:
        """The span of one request; `answered` completes it. Health checks have none."""
        if scope["path"].startswith(UNTRACED):
            return trace.use_span(trace.INVALID_SPAN)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in TRACE}
        parent = PROPAGATOR.extract(headers, Context())
        attributes: dict[str, str | bool] = {
            "http.request.method": scope["method"],
            "url.path": scope["path"][:200],
            "arches.request_id": request_id,
        }
        if trace.get_current_span(parent).get_span_context().trace_flags.sampled:
            attributes["arches.trace_wanted"] = True  # by whoever called: the collector keeps it, up to a rate
        return self._tracer.start_as_current_span(
            "request", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )

    def work(self, name: str) -> AbstractContextManager[Span]:
        """The span of something that no request has asked for."""
        return self._tracer.start_as_current_span(name, context=Context(), kind=SpanKind.INTERNAL)


TRACE = (b"traceparent", b"tracestate")


def trace_id(span: Span) -> str | None:
    """32 hexadecimal digits, or None where there is no trace."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def answered(span: Span, method: str, route: str, status: int, error: str | None) -> None:
    """Names a request's span by its route; an answer of 500 and above is an error, `error` the exception's type."""
    if not span.is_recording():
        return
    span.update_name(method if route == "none" else f"{method} {route}")
    span.set_attribute("http.response.status_code", status)
    if route != "none":
        span.set_attribute("http.route", route)
    if status >= 500:
        span.set_attribute("error.type", error or str(status))
        span.set_status(StatusCode.ERROR, error)


def _resource(settings: Settings) -> Resource:
    host = socket.gethostname()
    return Resource(
        {
            "service.name": "arches-api",
            "service.version": settings.release,
            "service.instance.id": f"{host}:{settings.instance}",
            "host.name": host,
            "deployment.environment.name": settings.env,
        }
    )


class _Everything(Sampler):
    """Requests and work of our own with all that they do; not what readiness and idle looks at the outbox ask."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        *arguments: Any,
        **options: Any,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context)
        ours = parent.is_recording() or kind in (SpanKind.SERVER, SpanKind.INTERNAL)
        chosen = ALWAYS_ON if ours else ALWAYS_OFF
        return chosen.should_sample(parent_context, trace_id, name, kind, *arguments, **options)

    def get_description(self) -> str:
        return "Everything"


class _DiscreetProvider(trace.TracerProvider):
    """Hands out tracers whose spans name the type of an exception and not its text."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *arguments: Any, **options: Any) -> trace.Tracer:
        return _DiscreetTracer(self._provider.get_tracer(*arguments, **options))


class _DiscreetTracer(trace.Tracer):
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *arguments: Any, **options: Any) -> Span:
        return self._tracer.start_span(*arguments, **options)

    @contextmanager
    def start_as_current_span(self, *arguments: Any, **options: Any) -> Iterator[Span]:  # type: ignore[override]
        quiet = {**options, "record_exception": False, "set_status_on_exception": False}
        with self._tracer.start_as_current_span(*arguments, **quiet) as span:
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR, type(error).__name__)
                raise


class _Sender(SpanExporter):
    """Sends batches on the queue's thread; logs once when the collector goes away and once when it is back."""

    def __init__(self, endpoint: str, metrics: Metrics) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_PATIENCE)
        self._endpoint = endpoint
        self._metrics = metrics
        self._end = float("inf")
        self._away = False
        self._lock = threading.Lock()
        self._waiting = 0

    def admit(self) -> bool:
        """Takes a place in the queue; False when it is full."""
        with self._lock:
            if self._waiting >= QUEUE:
                return False
            self._waiting += 1
            return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            self._waiting -= len(spans)
        away = time.monotonic() >= self._end or self._exporter.export(spans) is not SpanExportResult.SUCCESS
        self._metrics.spans.labels("failed" if away else "sent").inc(len(spans))
        if away != self._away:
            self._away = away
            log.warning("spans are dropped" if away else "spans are sent again", endpoint=self._endpoint)
        return SpanExportResult.FAILURE if away else SpanExportResult.SUCCESS

    def end_by(self, moment: float) -> None:
        """Sends nothing after this monotonic time."""
        self._end = moment

    def interrupt(self) -> None:
        """Ends a try that waits."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def shutdown(self) -> None:
        return


class _Queue(BatchSpanProcessor):
    """The SDK's queue, with our count of what finds no place in it."""

    def __init__(self, sender: _Sender, metrics: Metrics) -> None:
        super().__init__(sender, max_queue_size=QUEUE, schedule_delay_millis=EVERY * 1000, max_export_batch_size=BATCH)
        self._sender = sender
        self._metrics = metrics

    def on_end(self, span: ReadableSpan) -> None:
        if self._sender.admit():
            super().on_end(span)
        else:
            self._metrics.spans.labels("full").inc()
