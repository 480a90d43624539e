"""A line that any host writes is found in Loki: soon when all is well, later when Loki was away, but found."""

import os
import secrets
import subprocess

import pytest

from lib.client import edge_client
from lib.fleet import REPOSITORY, Fleet
from lib.logs import fleet_loki, write_lines, written
from lib.loki import Loki
from lib.waiting import wait_for

SOON_S = 15.0
# The figure is 180; `make test` makes do with less.
LOKI_DOWN_S = float(os.environ.get("LOKI_DOWN_S", "60"))
LINES_PER_SECOND = 50


@pytest.fixture(scope="module")
def loki(fleet: Fleet) -> Loki:
    """Loki of the local fleet, asked from its own host."""
    found = fleet_loki(fleet)
    wait_for("Loki is ready", found.ready, timeout_s=60)
    return found


def test_a_line_of_every_host_is_found_within_15_seconds(fleet: Fleet, loki: Loki) -> None:
    word = secrets.token_hex(6)
    for host in fleet.groups["all"]:
        fleet.ssh(host, f"logger -t probe -p user.warning {word} from {host}")

    def missing() -> set[str]:
        lines = loki.lines(f'{{environment="local", level="warn"}} |= `{word}`', since_s=300)
        return set(fleet.groups["all"]) - {line.labels["host"] for line in lines if line.labels["host"] in line.text}

    wait_for("every host's line", lambda: not missing(), SOON_S)


def test_labels_are_the_four_and_units_are_bounded(fleet: Fleet, loki: Loki) -> None:
    assert loki.labels() == {"host", "unit", "level", "environment"}
    streams = loki.ask("/loki/api/v1/series", **{"match[]": '{environment="local"}', "since": "1h"})["data"]
    assert {stream["level"] for stream in streams} <= {"fatal", "error", "warn", "info", "debug"}
    assert {stream["host"] for stream in streams} == set(fleet.groups["all"])


def test_a_request_is_found_by_its_id_at_the_edge_and_at_the_api(fleet: Fleet, loki: Loki) -> None:
    with edge_client(fleet) as client:
        request = client.get("/v1/me").headers["x-request-id"]
    for unit in ("nginx[.]service", "api@.*"):
        query = f'{{unit=~"{unit}"}} | request_id="{request}"'
        wait_for(f"{unit} wrote of {request}", lambda q=query: loki.lines(q, since_s=300), SOON_S)


def test_nothing_is_lost_while_loki_is_away(healthy: Fleet, loki: Loki) -> None:
    word, hosts = secrets.token_hex(6), ["api1", "data1", "edge1"]
    store = healthy.groups["ops"][0]
    count = int(LOKI_DOWN_S * LINES_PER_SECOND)  # below what Loki gives out at once
    healthy.ssh(store, "systemctl stop arches-loki")
    try:
        for host in hosts:
            write_lines(healthy, host, word, LINES_PER_SECOND, LOKI_DOWN_S)
        for host in hosts:
            wait_for(f"{host} has written", lambda h=host: written(healthy, h, word) == count, LOKI_DOWN_S + 60, 2)
    finally:
        healthy.ssh(store, "systemctl start arches-loki")
    wait_for("Loki is ready", loki.ready, timeout_s=90)
    for host in hosts:
        query = f'{{host="{host}", unit="lines-{word}.service"}} |~ `^{word} [0-9]+ `'
        wait_for(f"all of {host}", lambda q=query: loki.count(q) >= count, 90, 1)
        texts = loki.texts(query)
        assert (len(set(texts)), len(texts)) == (count, count), f"{host}: written {count} lines"


def test_a_busy_unit_loses_nothing(fleet: Fleet, loki: Loki) -> None:
    """300 lines a second for a minute, the figure of the bench; shorter here."""
    word, count = secrets.token_hex(6), 300 * 20
    write_lines(fleet, "api1", word, 300, 20)
    query = f'{{host="api1", unit="lines-{word}.service"}} |~ `^{word} [0-9]+ `'
    wait_for("all lines", lambda: loki.count(query) >= count, 90, 1)
    assert len(set(loki.texts(query))) == count


def test_make_logs_prints_lines_and_says_what_is_wrong(fleet: Fleet, loki: Loki) -> None:
    word = secrets.token_hex(6)
    fleet.ssh("data1", f"logger -t probe {word}")
    wait_for("the line", lambda: loki.lines(f'{{host="data1"}} |= `{word}`', since_s=300), SOON_S)

    def logs(query: str) -> subprocess.CompletedProcess[str]:
        command = [str(REPOSITORY / "ansible/bin/logs"), "inventories/local", "--query", query, "--since", "5m"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)

    found = logs(f'{{host="data1"}} |= `{word}`')
    assert found.returncode == 0 and " data1 " in found.stdout and found.stdout.rstrip().endswith(word), found
    nothing = logs(f'{{host="data1"}} |= `{word} never written`')
    assert nothing.returncode == 1 and "no lines" in nothing.stderr
    wrong = logs("{host=")
    assert wrong.returncode == 2 and "parse error" in wrong.stderr
