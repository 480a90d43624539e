"""Each request is a trace whose ids are in the log; a collector that is away costs requests nothing."""

import json
import logging
import time
from collections.abc import Generator
from typing import Any

import asyncpg
import pytest
import structlog
from api_support.collector import StubCollector
from api_support.embedder import StubEmbedder
from api_support.environment import settings_with
from api_support.server import free_port
from opentelemetry.trace import SpanKind
from quart import Quart
from quart.typing import TestClientProtocol as Client

from arches_api.app import create_app
from arches_api.lib.embeddings import HttpEmbeddings
from arches_api.lib.logs import configure_logging
from arches_api.lib.metrics import Metrics
from arches_api.lib.tracing import BATCH, FLUSH_PATIENCE, QUEUE, Tracing
from lib.waiting import wait_for

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # sha256: none, but as random as one (the W3C's example)
CALLER = "00f067aa0ba902b7"
SERVER, CLIENT, ERROR = 2, 3, 2  # as OTLP numbers kinds of spans and their states
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-00"}


@pytest.fixture
def collector() -> Generator[StubCollector]:
    """Takes spans."""
    stub = StubCollector()
    yield stub
    stub.close()


@pytest.fixture
def traced(collector: StubCollector) -> Quart:
    """An application that sends its spans to the collector."""
    return create_app(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=collector.url, API_INSTANCE="2"))


def sent(metrics: Metrics, outcome: str) -> float:
    """Spans with this outcome."""
    return metrics.registry.get_sample_value("arches_spans_total", {"outcome": outcome}) or 0


async def test_a_request_is_a_span_of_its_callers_trace(traced: Quart, collector: StubCollector) -> None:
    path = "/v1/artifacts/b97cb179-87bc-46fa-90a9-c3908c9776da?q=secret"
    headers = {**PARENT, "X-Request-Id": TRACE, "Authorization": "Bearer secret"}
    response = await traced.test_client().get(path, headers=headers)
    assert response.headers["X-Request-Id"] == TRACE
    (span,) = collector.trace(TRACE)
    assert (span["parent"], span["kind"]) == (CALLER, SERVER)
    assert span["name"] == "GET /v1/artifacts/<uuid:artifact_id>"
    assert span["attributes"]["http.route"] == "/v1/artifacts/<uuid:artifact_id>"
    assert span["attributes"]["http.response.status_code"] == 401
    assert span["attributes"]["arches.request_id"] == TRACE
    assert span["status"] != ERROR, "a wrong request is no fault of ours"
    assert "secret" not in span["all"]
    assert span["resource"]["service.name"] == "arches-api"
    assert span["resource"]["service.version"] == "1.2.3-test"
    assert span["resource"]["service.instance.id"] == f"{span['resource']['host.name']}:2"


@pytest.mark.parametrize(("flag", "wanted"), [("00", None), ("01", True)])
async def test_a_caller_who_wants_the_trace_is_noted(
    traced: Quart, collector: StubCollector, flag: str, wanted: bool | None
) -> None:
    await traced.test_client().get("/nowhere", headers={"traceparent": f"00-{TRACE}-{CALLER}-{flag}"})
    (span,) = collector.trace(TRACE)
    assert span["name"] == "GET"
    assert span["attributes"].get("arches.trace_wanted") is wanted


async def test_health_checks_make_no_spans(traced: Quart, collector: StubCollector) -> None:
    client = traced.test_client()
    for path in ("/health/live", "/health/ready", "/v1/me"):
        await client.get(path, headers=PARENT)
    assert [span["name"] for span in collector.trace(TRACE)] == ["GET /v1/me"]
    assert len(collector.spans) == 1


async def test_a_fault_of_ours_marks_the_span_without_its_text(traced: Quart, collector: StubCollector) -> None:
    async def broken() -> None:
        raise RuntimeError("secret details")

    traced.add_url_rule("/broken", "broken", broken)
    await traced.test_client().get("/broken", headers=PARENT)
    (span,) = collector.trace(TRACE)
    assert span["status"] == ERROR
    assert span["attributes"]["error.type"] == "RuntimeError"
    assert "secret" not in span["all"]


async def test_calls_to_redis_are_spans_below_the_request(traced: Quart, collector: StubCollector) -> None:
    """Redis is away: the span says so. The address that is limited stays out of it."""
    account = {"email": "somebody@example.org", "password": "a long password"}
    database = traced.extensions["arches"].database
    await database.open()
    response = await traced.test_client().post("/v1/auth/login", json=account, headers=PARENT)
    await database.close()
    spans = {span["name"]: span for span in collector.trace(TRACE, count=2)}
    request = spans["POST /v1/auth/login"]
    assert response.status_code == request["attributes"]["http.response.status_code"] == 503
    assert request["status"] == ERROR
    assert spans["EVALSHA"]["parent"] == request["id"]
    assert (spans["EVALSHA"]["kind"], spans["EVALSHA"]["status"]) == (CLIENT, ERROR)
    assert "somebody" not in str([span["all"] for span in spans.values()])


async def test_the_embedder_is_called_within_the_trace(collector: StubCollector) -> None:
    metrics = Metrics("test")
    tracing = Tracing(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=collector.url), metrics)
    embedder = StubEmbedder()
    provider = HttpEmbeddings(embedder.url, "m", 384, "a key", tracing)
    try:
        await provider.embed(["nobody asked"], patience=5)
        with tracing.work("embed"):
            await provider.embed(["a text that stays here"], patience=5)
    finally:
        await provider.close()
        embedder.close()
        await tracing.close()
    assert [span["name"] for span in collector.spans] == ["POST", "embed"]
    call, work = collector.spans
    assert call["parent"] == work["id"] and call["kind"] == CLIENT
    assert embedder.calls[1]["traceparent"].startswith(f"00-{work['trace']}-{call['id']}-")
    assert "a key" not in call["all"] and "stays here" not in call["all"]


async def test_statements_are_spans_without_their_values(
    collector: StubCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres repeats values in its errors ("Key (email)=(...) already exists")."""

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        def __init__(self) -> None:
            return

        def __del__(self) -> None:
            return

        async def _execute(self, *_: Any, **__: Any) -> None:
            raise asyncpg.UniqueViolationError("Key (email)=(somebody@example.org) already exists.")

        def _check_open(self) -> None:
            return

    tracing = Tracing(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=collector.url), Metrics("test"))
    tracing.start()
    with tracing.work("work"), pytest.raises(asyncpg.UniqueViolationError):
        await Connection().fetchrow("INSERT INTO users (email) VALUES ($1)", "somebody@example.org")
    await tracing.close()
    statement = next(span for span in collector.spans if span["name"] == "INSERT")
    assert statement["attributes"]["db.statement"] == "INSERT INTO users (email) VALUES ($1)"
    assert statement["attributes"]["error.type"] == "UniqueViolationError"
    assert statement["status"] == ERROR
    assert "somebody" not in statement["all"]


async def test_log_lines_carry_both_ids(traced: Quart, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        await traced.test_client().get("/v1/me", headers={**PARENT, "X-Request-Id": "0123456789abcdef"})
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
    line = next(json.loads(line) for line in capsys.readouterr().out.splitlines() if '"event":"request"' in line)
    assert (line["trace_id"], line["request_id"]) == (TRACE, "0123456789abcdef")


async def answers_per_second(client: Client, count: int) -> float:
    """Of an answered request without a database; every answer must be the same."""
    started = time.perf_counter()
    for _ in range(count):
        assert (await client.get("/openapi.json")).status_code == 200
    return count / (time.perf_counter() - started)


async def test_a_collector_that_is_away_costs_nothing() -> None:
    """As many answers, about as fast, and what finds no place is counted."""
    away = f"http://127.0.0.1:{free_port()}/v1/traces"
    app = create_app(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=away))
    plain = create_app(settings_with()).test_client()
    client = app.test_client()
    rates = [(await answers_per_second(plain, 50), await answers_per_second(client, 50)) for _ in range(4)]
    assert max(with_tracing / without for without, with_tracing in rates) > 0.5, rates
    metrics = app.extensions["arches"].metrics
    wait_for("spans are counted as lost", lambda: sent(metrics, "failed") > 0, 15)


async def test_a_queue_that_is_full_drops_and_counts(collector: StubCollector) -> None:
    collector.gate.clear()
    metrics = Metrics("test")
    tracing = Tracing(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=collector.url), metrics)
    for _ in range(QUEUE + 2 * BATCH):
        with tracing.work("much"):
            pass
    assert sent(metrics, "full") > 0
    started = time.monotonic()
    await tracing.close()
    assert time.monotonic() - started < FLUSH_PATIENCE + 1, "leaving waits no longer for a collector that hangs"


async def test_the_last_spans_are_sent_before_leaving(collector: StubCollector) -> None:
    metrics = Metrics("test")
    tracing = Tracing(settings_with(TRACING_ENABLED="true", TRACING_ENDPOINT=collector.url), metrics)
    with tracing.work("last"):
        pass
    await tracing.close()
    assert [span["name"] for span in collector.spans] == ["last"]
    assert sent(metrics, "sent") == 1


async def test_off_means_off(client: Client, app: Quart) -> None:
    assert (await client.get("/v1/me", headers=PARENT)).status_code == 401
    assert app.extensions["arches"].metrics.registry.get_sample_value("arches_spans_total") is None
    assert SpanKind.SERVER.value == SERVER - 1, "OTLP counts from one"
