"""The receiver of the drills: what Alertmanager sends is remembered, anything else is refused and breaks nothing."""

import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from lib.waiting import wait_for
from lib.webhook import REFUSED, Webhook, parse


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook("http://127.0.0.1:0/page", limit=3, body_limit=4000) as listening:
        yield listening


def alert(name: str, status: str = "firing", starts_at: float = 100, **labels: str) -> dict[str, Any]:
    when = datetime.fromtimestamp(starts_at, UTC).isoformat()
    return {
        "status": status,
        "labels": {"alertname": name, **labels},
        "startsAt": when.replace("+00:00", "Z"),
        "fingerprint": name + "".join(labels.values()),
    }


def post(webhook: Webhook, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(*webhook.address, timeout=5)
    connection.request("POST", path, body)
    status = connection.getresponse().status
    connection.close()
    return status


def send(webhook: Webhook, *alerts: dict[str, Any], path: str = "/page") -> int:
    return post(webhook, path, json.dumps({"version": "4", "alerts": alerts}).encode())


def test_an_alert_is_remembered_with_its_receiver(webhook: Webhook) -> None:
    assert send(webhook, alert("A", host="a1"), alert("B"), path="/ticket") == 200
    found = webhook.fired("A", since=50)
    assert found is not None
    assert (found.path, found.labels["host"], found.starts_at) == ("/ticket", "a1", 100)


def test_what_fired_before_the_cause_does_not_count(webhook: Webhook) -> None:
    send(webhook, alert("A", starts_at=100))
    assert webhook.fired("A", since=101) is None
    send(webhook, alert("A", starts_at=102))
    assert webhook.fired("A", since=101) is not None


def test_only_the_wanted_labels_count(webhook: Webhook) -> None:
    send(webhook, alert("A", host="a1"))
    assert webhook.fired("A", 0, {"host": "a2"}) is None
    assert webhook.fired("A", 0, {"host": "a1"}) is not None


def test_the_last_word_on_an_alert_counts(webhook: Webhook) -> None:
    for status in ("firing", "resolved"):
        send(webhook, alert("A", status=status))
    last = webhook.last("A")
    assert last is not None
    assert last.status == "resolved"
    assert webhook.last("B") is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"alerts": [{}]}', b'{"alerts": 1}', b"\xff\xfe", b'{"alerts": [{"startsAt": 1}]}']
)
def test_what_is_no_notification_is_refused(webhook: Webhook, body: bytes) -> None:
    assert post(webhook, "/page", body) == 400
    assert webhook.notifications() == []
    assert send(webhook, alert("A")) == 200


def test_a_body_over_the_limit_is_refused_unread(webhook: Webhook) -> None:
    assert post(webhook, "/page", b"x" * 4001) == 413


def test_it_forgets_the_oldest_and_says_so(webhook: Webhook) -> None:
    send(webhook, *(alert(name) for name in "ABCDE"))
    assert [n.alert for n in webhook.notifications()] == ["C", "D", "E"]
    assert webhook.forgotten == 2


def test_it_refuses_what_a_drill_wants_refused(webhook: Webhook) -> None:
    assert send(webhook, alert(REFUSED)) == 500
    assert send(webhook, alert(REFUSED, status="resolved")) == 200


def test_silent_senders_do_not_keep_others_waiting(webhook: Webhook) -> None:
    silent = http.client.HTTPConnection(*webhook.address, timeout=5)
    silent.connect()
    assert send(webhook, alert("A")) == 200
    silent.close()


def test_its_port_is_free_again_afterwards() -> None:
    with Webhook("http://127.0.0.1:0/") as first:
        host, port = first.address
    wait_for("the port is free", lambda: Webhook(f"http://{host}:{port}/").__enter__(), timeout_s=5).__exit__(
        None, None, None
    )


def test_times_are_those_of_alertmanager() -> None:
    body = json.dumps({"alerts": [alert("A") | {"startsAt": "2026-01-02T03:04:05.678Z"}]}).encode()
    assert parse("/page", body, at=1)[0].starts_at == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC).timestamp()
