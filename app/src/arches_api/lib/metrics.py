"""Prometheus metrics of one server process. Routes are labelled by their rule, never by the path."""

from collections.abc import Callable
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics, in a registry of their own, so that several applications can live in one process (tests)."""

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "arches_http_requests_total", "Answered requests", ("method", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "arches_http_request_seconds",
            "Time to answer a request",
            ("method", "route"),
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("arches_http_in_flight", "Requests being answered", registry=self.registry)
        self.draining = Gauge("arches_draining", "1 while this process is going away", registry=self.registry)
        self.limited = Counter(
            "arches_rate_limited_total", "Requests refused by a rate limit", ("limit",), registry=self.registry
        )
        self.redis_errors = Counter("arches_redis_errors_total", "Failed calls to Redis", registry=self.registry)
        self.database_retries = Counter(
            "arches_database_retries_total", "Transactions begun again before anything was sent", registry=self.registry
        )
        self.database_errors = Counter(
            "arches_database_unavailable_total", "Transactions refused or lost", registry=self.registry
        )
        self.database_waiting = Gauge(
            "arches_database_waiting", "Transactions that wait for a connection", registry=self.registry
        )
        self.embedded = Counter(
            "arches_embeddings_total", "Embedding calls by outcome", ("purpose", "outcome"), registry=self.registry
        )
        self.embedding_backlog = Gauge(
            "arches_embedding_backlog", "Artifacts that wait for an embedding", registry=self.registry
        )
        self.spans = Counter(
            "arches_spans_total", "Spans: sent, failed to be sent, or queue full", ("outcome",), registry=self.registry
        )
        self.searches = Counter("arches_searches_total", "Searches by mode", ("mode",), registry=self.registry)
        Gauge("arches_build_info", "Release that is running", ("release",), registry=self.registry).labels(release).set(
            1
        )

    def observe_pool(self, size: Callable[[], int], idle: Callable[[], int]) -> None:
        """Reads the database pool's counts at scrape time."""
        Gauge("arches_database_connections", "Open connections", registry=self.registry).set_function(size)
        Gauge("arches_database_connections_idle", "Idle connections", registry=self.registry).set_function(idle)

    def serve(self, host: str, port: int) -> tuple[WSGIServer, Thread]:
        """Serves /metrics on its own thread. Raises OSError when the port is taken."""
        return start_http_server(port, addr=host, registry=self.registry)
