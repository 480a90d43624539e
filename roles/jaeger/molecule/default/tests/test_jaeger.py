"""Spans come in with a certificate only, are found by their trace's id, and stay."""

import json
import secrets
import time
from typing import Any

from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

SOON_S = 30.0
TLS = "--cacert /etc/arches/tls/ca.crt"
CERTIFICATE = "--cert /etc/arches/tls/host.crt --key /etc/arches/tls/host.key"


def send(host: Host, trace_id: str, *, certificate: str = CERTIFICATE) -> Any:
    """Send one span as the hosts' collectors do (curl has no protobuf, so as JSON)."""
    now = time.time_ns()
    times = {"startTimeUnixNano": str(now - 250_000_000), "endTimeUnixNano": str(now)}
    span = {"traceId": trace_id, "spanId": secrets.token_hex(8), "name": "hello", "kind": 2, **times}
    name = {"key": "service.name", "value": {"stringValue": "molecule"}}
    content = {"resourceSpans": [{"resource": {"attributes": [name]}, "scopeSpans": [{"spans": [span]}]}]}
    return host.run(
        f"curl -sS --fail --max-time 10 {TLS} {certificate} -H 'Content-Type: application/json' -d %s https://traces1:4320/v1/traces",
        json.dumps(content),
    )


def names(host: Host, trace_id: str) -> list[str]:
    """Names of the spans of a trace; none when it is not there."""
    answer = host.run("curl -sS --max-time 10 http://127.0.0.1:16686/api/traces/%s", trace_id)
    assert answer.rc == 0, answer.stderr
    found = json.loads(answer.stdout)["data"] or []
    return [span["operationName"] for trace in found for span in trace["spans"]]


def stored(host: Host) -> str:
    """The id of a trace that was sent and is found."""
    trace_id = secrets.token_hex(16)
    wait_for("a span is taken", lambda: send(host, trace_id).rc == 0, SOON_S)
    wait_for("the trace is found", lambda: names(host, trace_id) == ["hello"], SOON_S)
    return trace_id


def test_a_span_is_found_by_its_trace(host: Host) -> None:
    stored(host)
    assert names(host, secrets.token_hex(16)) == []


def test_without_a_certificate_nothing_is_taken(host: Host) -> None:
    stored(host)
    trace_id = secrets.token_hex(16)
    refused = send(host, trace_id, certificate="")
    assert refused.rc != 0
    assert "certificate" in refused.stderr, refused.stderr
    assert names(host, trace_id) == []


def test_queries_health_and_metrics_are_on_loopback_only(host: Host) -> None:
    for port in (16686, 16685, 13133, 8889):
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening
    assert host.run("curl -sS --fail http://127.0.0.1:13133/status").rc == 0
    stored(host)
    names_of_metrics = (
        "otelcol_receiver_accepted_spans",
        "otelcol_exporter_sent_spans",
        "jaeger_storage_badger_size_bytes",
    )

    def missing() -> list[str]:
        metrics = host.check_output("curl -sS --fail http://127.0.0.1:8889/metrics")
        return [name for name in names_of_metrics if name not in metrics]

    # The store counts its bytes every few seconds.
    wait_for("all metrics are there", lambda: not missing(), SOON_S)


def test_it_does_not_trace_itself(host: Host) -> None:
    stored(host)
    services = json.loads(host.check_output("curl -sS --fail http://127.0.0.1:16686/api/services"))["data"]
    assert services == ["molecule"]


def test_a_restart_keeps_traces(host: Host) -> None:
    trace_id = stored(host)
    host.check_output("systemctl restart arches-jaeger")
    wait_for("the trace is there again", lambda: names(host, trace_id) == ["hello"], SOON_S)


def test_a_killed_process_is_back_with_its_traces(host: Host) -> None:
    trace_id = stored(host)
    before = host.check_output("systemctl show -p MainPID --value arches-jaeger")
    host.check_output("systemctl kill -s KILL arches-jaeger")
    wait_for("the trace is there again", lambda: names(host, trace_id) == ["hello"], SOON_S)
    assert host.check_output("systemctl show -p MainPID --value arches-jaeger") != before
    stored(host)


def test_limits_reach_the_process(host: Host) -> None:
    environment = host.check_output("systemctl show -p Environment --value arches-jaeger")
    assert "GOMEMLIMIT=326MiB" in environment


def test_a_changed_setting_restarts_it(host: Host) -> None:
    """The last test: it leaves other settings."""
    trace_id = stored(host)
    play(variables={"jaeger_retention_hours": 48})
    assert "48h" in host.file("/etc/arches-jaeger/config.yml").content_string
    wait_for("the trace is there again", lambda: names(host, trace_id) == ["hello"], SOON_S)
    assert not host.file("/var/lib/arches/pending/jaeger").exists
