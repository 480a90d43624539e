"""A request's trace holds its SQL and its calls to Redis, and nothing of what people wrote."""

import secrets

from api_support.collector import StubCollector
from api_support.forwarder import Paths
from api_support.server import Person, serving


def test_a_stored_artifact_is_one_trace_with_its_sql(forwarders: Paths, admin_url: str) -> None:
    collector = StubCollector()
    trace = secrets.token_hex(16)
    environment = {"TRACING_ENABLED": "true", "TRACING_ENDPOINT": collector.url}
    try:
        with serving(**forwarders.environment, **environment) as server:
            person = Person(server.url, "traced@example.org")
            person.http.headers["traceparent"] = f"00-{trace}-{secrets.token_hex(8)}-01"
            person.store("private name", "private text")
        spans = {span["name"]: span for span in collector.trace(trace)}
    finally:
        collector.close()
    request = spans["POST /v1/artifacts"]
    assert {"BEGIN;", "INSERT", "COMMIT;"} <= set(spans), "the process has left, so every span was sent"
    assert spans["INSERT"]["parent"] == request["id"]
    assert "INSERT INTO artifacts" in spans["INSERT"]["attributes"]["db.statement"]
    assert spans["EVALSHA"]["trace"] == trace
    everything = str([span["all"] for span in collector.spans])
    for secret in ("private", "traced@example.org", person.tokens["access_token"]):
        assert secret not in everything
