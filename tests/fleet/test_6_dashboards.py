"""Every query of every dashboard returns data on the running fleet, and every metric that is named exists."""

import json
from typing import Any

import httpx
import yaml

from lib.client import register_and_login
from lib.dashboards import (
    ABSENT,
    Query,
    absent_metrics,
    boards,
    missing_metrics,
    queries,
    rule_expressions,
    silent_queries,
    unneeded_absences,
)
from lib.fleet import Fleet
from lib.waiting import wait_for

# Two scrapes after the requests, so that rates have something to compare; the rest is for a busy computer.
SOON_S = 90.0
# Runs on the host of Prometheus and Loki: asks all addresses at once, with its certificate, and prints the answers.
ASK = """
import concurrent.futures, json, ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/etc/arches/tls/ca.crt")
context.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
def ask(address):
    secure = {"context": context} if address.startswith("https") else {}
    try:
        return json.load(urllib.request.urlopen(address, timeout=30, **secure))
    except urllib.error.HTTPError as error:
        return {"status": "error", "error": error.read().decode(errors="replace").strip()}
    except OSError as error:
        return {"status": "error", "error": str(error)}
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(json.dumps(list(pool.map(ask, json.load(sys.stdin)))))
"""


def ask(fleet: Fleet, addresses: list[str]) -> list[dict[str, Any]]:
    """Answers of several addresses, asked on the host that runs Prometheus, in one ssh call."""
    host = fleet.groups[fleet.services["prometheus"]["hosts"]][0]
    answers: list[dict[str, Any]] = json.loads(
        fleet.ssh(host, f"python3 -c '{ASK}'", stdin=json.dumps(addresses), timeout_s=180).stdout
    )
    return answers


def base(fleet: Fleet, service: str) -> str:
    """Address of a service as seen on its own host."""
    entry = fleet.services[service]
    host = fleet.address(fleet.groups[entry["hosts"]][0]) if entry["from"] else "127.0.0.1"
    return f"{'http' if entry['tls'] == 'none' else 'https'}://{host}:{entry['port']}"


def address(fleet: Fleet, query: Query) -> str:
    """Where a query is run: Prometheus now, Loki over the last hour."""
    if query.source == "loki":
        wanted = httpx.QueryParams({"query": query.runnable, "limit": "1", "since": "1h"})
        return f"{base(fleet, 'loki')}/loki/api/v1/query_range?{wanted}"
    return f"{base(fleet, 'prometheus')}/api/v1/query?{httpx.QueryParams({'query': query.runnable})}"


def use(fleet: Fleet, api: httpx.Client) -> None:
    """Cause what the dashboards count: requests, an embedding, a search, a look into the traces."""
    user = register_and_login(api)
    note = {"name": "note", "text": "That is a very happy person"}
    api.post("/v1/artifacts", headers=user, json=note).raise_for_status()
    api.get("/v1/artifacts/search", headers=user, params={"q": "somebody full of joy"}).raise_for_status()
    ask(fleet, [f"{base(fleet, 'jaeger_query')}/api/services"])


def test_every_query_of_every_panel_returns_data(fleet: Fleet, api: httpx.Client) -> None:
    every = [query for board in boards() for query in queries(board)]
    # A mark is an event: there is none as long as nothing is released. It is run, and must be understood.
    marks = [query for query in every if query.source == "annotation"]
    asked = [query for query in every if query.source != "annotation"]
    absent = absent_metrics()
    left: list[str] = []

    def all_speak() -> bool:
        use(fleet, api)
        left[:] = silent_queries(asked, ask(fleet, [address(fleet, query) for query in asked]), absent)
        return not left

    try:
        wait_for("every query returns data", all_speak, SOON_S, interval_s=5)
    except TimeoutError as error:
        raise AssertionError("\n".join(left)) from error
    refused = [a for a in ask(fleet, [address(fleet, query) for query in marks]) if a.get("status") != "success"]
    assert not refused, refused


def test_every_metric_that_is_named_exists(fleet: Fleet, api: httpx.Client) -> None:
    used = [(q.place, q.expression) for board in boards() for q in queries(board) if q.source != "loki"]
    used += [(f"rule {name}", expression) for name, expression in rule_expressions()]
    names = f"{base(fleet, 'prometheus')}/api/v1/label/__name__/values"
    absent = absent_metrics()
    left: list[str] = []

    def all_known() -> bool:
        use(fleet, api)
        left[:] = missing_metrics(used, ask(fleet, [names])[0]["data"], absent)
        return not left

    try:
        wait_for("every metric exists", all_known, SOON_S, interval_s=5)
    except TimeoutError as error:
        raise AssertionError("\n".join(left)) from error
    pending = yaml.safe_load(ABSENT.read_text())["pending"] or {}
    there = list(unneeded_absences(ask(fleet, [names])[0]["data"], pending))
    assert not there, "\n".join(there)
