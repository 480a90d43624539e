"""Alertmanager with a webhook on the same machine."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

AMTOOL = "amtool --alertmanager.url=http://127.0.0.1:9093"
# Writes what arrives, one JSON object per line, with the path it came to.
WEBHOOK = """
import http.server, json
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/run/hook.jsonl", "a") as log:
            log.write(json.dumps({"path": self.path, **body}) + "\\n")
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 9199), Hook).serve_forever()
"""

type Start = Callable[[], None]


@pytest.fixture
def start(host: Host) -> Iterator[Start]:
    """Starts the webhook with an empty memory; it ends with the test."""

    def begin() -> None:
        host.run("rm -f /run/hook.jsonl; systemctl stop hook; systemctl reset-failed hook")
        started = host.run("systemd-run --unit=hook --collect python3 -c %s", WEBHOOK)
        assert started.rc == 0, started.stderr

    yield begin
    host.run("systemctl stop hook")


def heard(host: Host, path: str) -> list[dict[str, Any]]:
    """Notifications that arrived at a path."""
    lines = host.run("cat /run/hook.jsonl").stdout.splitlines()
    return [found for line in lines if (found := json.loads(line))["path"] == path]


def alert(host: Host, name: str, *labels: str, minutes: int = 5) -> None:
    """Fires an alert."""
    end = f"--end=$(date -u -d '{minutes} minutes' +%Y-%m-%dT%H:%M:%SZ)"
    added = host.run(f"{AMTOOL} alert add {name} {' '.join(labels)} {end}")
    assert added.rc == 0, added.stderr


def test_a_page_goes_to_the_pager_and_so_does_its_end(host: Host, start: Start) -> None:
    start()
    alert(host, "Broken", "severity=page", "subject=toy", "host=a1")
    wait_for("the page", lambda: heard(host, "/page"), timeout_s=20)
    (first, *_) = heard(host, "/page")
    assert first["status"] == "firing"
    assert first["commonLabels"]["alertname"] == "Broken"
    assert not heard(host, "/ticket")
    alert(host, "Broken", "severity=page", "subject=toy", "host=a1", minutes=-1)
    wait_for("its end", lambda: [n for n in heard(host, "/page") if n["status"] == "resolved"], timeout_s=20)


def test_a_host_that_is_away_silences_its_other_alerts(host: Host, start: Start) -> None:
    start()
    alert(host, "HostDown", "severity=page", "subject=host", "host=a2")
    wait_for("the host's page", lambda: heard(host, "/page"), timeout_s=20)
    alert(host, "UnitFailed", "severity=ticket", "subject=host", "host=a2")
    alert(host, "UnitFailed", "severity=ticket", "subject=host", "host=a3")
    wait_for("the other host's ticket", lambda: heard(host, "/ticket"), timeout_s=20)
    assert {a["labels"]["host"] for n in heard(host, "/ticket") for a in n["alerts"]} == {"a3"}


def test_the_heartbeat_goes_to_the_watchdog_only(host: Host, start: Start) -> None:
    start()
    alert(host, "Watchdog", "severity=none", "subject=watch")
    wait_for("the heartbeat", lambda: heard(host, "/watchdog"), timeout_s=20)
    assert not [n for n in heard(host, "/page") if n["commonLabels"]["alertname"] == "Watchdog"]


def test_a_receiver_that_was_away_gets_what_it_missed(host: Host, start: Start) -> None:
    alert(host, "Missed", "severity=page", "subject=toy", "host=a4")
    wait_for(
        "a notification that failed",
        lambda: (
            host.run(
                "journalctl -u prometheus-alertmanager -o cat --since=-1min | grep Missed | grep 'connection refused'"
            ).rc
            == 0
        ),
        timeout_s=30,
    )
    start()
    wait_for(
        "the page after all",
        lambda: [n for n in heard(host, "/page") if n["commonLabels"].get("alertname") == "Missed"],
        timeout_s=60,
    )


def test_a_broken_configuration_is_refused_and_the_old_one_goes_on(host: Host) -> None:
    before = host.file("/etc/prometheus/alertmanager.yml").content
    with pytest.raises(AssertionError, match=r"alertmanager\.yml"):
        play(variables={"alertmanager_receivers": {"page": [{"type": "webhook", "url": "no address"}], "ticket": []}})
    assert host.file("/etc/prometheus/alertmanager.yml").content == before
    assert host.service("prometheus-alertmanager").is_running


def test_it_listens_on_loopback_only(host: Host) -> None:
    # The kernel keeps fifteen characters of a program's name.
    listening = [line for line in host.run("ss -Hltnp").stdout.splitlines() if "prometheus-aler" in line]
    assert listening
    assert all("127.0.0.1:9093" in line for line in listening), listening
    assert host.file("/etc/prometheus/alertmanager.yml").mode == 0o640
