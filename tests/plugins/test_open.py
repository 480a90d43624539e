"""`make open`: the addresses of an environment, from its inventory alone."""

from __future__ import annotations

import re
from typing import Any

from lib.plugins import PROJECT, load_script

opened = load_script("open")


def listed(provider: str = "nspawn", **more: Any) -> dict[str, Any]:
    """What `ansible-inventory --list` says of an edge and a host that watches."""
    services = {
        "edge_https": {"hosts": "edge", "port": 8443, "from": ["world"], "tls": "public", "health": "/ready"},
        "prometheus": {"hosts": "ops", "port": 1001, "from": [], "tls": "none"},
        "alertmanager": {"hosts": "ops", "port": 1002, "from": [], "tls": "none"},
        "loki": {"hosts": "ops", "port": 1003, "from": ["edge"], "tls": "internal"},
        "jaeger_query": {"hosts": "ops", "port": 1004, "from": [], "tls": "none"},
        "grafana": {"hosts": "ops", "port": 1005, "from": ["edge"], "tls": "internal", "vendor": True},
    }
    common = {"services": services, "domain": "example", "machine_provider": provider, "ansible_user": "ops", **more}
    return {
        "_meta": {"hostvars": {"e1": {**common, "address": "192.0.2.1"}, "o1": {**common, "address": "192.0.2.2"}}},
        "edge": {"hosts": ["e1"]},
        "ops": {"hosts": ["o1"]},
    }


def test_every_page_has_an_address_and_a_way_to_it() -> None:
    pages = dict(opened.pages(listed(), "inventories/local"))
    assert list(pages) == ["Prometheus", "Alertmanager", "Loki", "Jaeger", "Grafana"]
    assert pages["Prometheus"] == "http://localhost:1001/"
    assert pages["Loki"].startswith("https://localhost:1003/ready")
    ways = opened.tunnels(listed(), "inventories/local")
    assert ways == [
        "ssh -F inventories/local/.state/ssh/config -N -L 1001:127.0.0.1:1001 -L 1002:127.0.0.1:1002 "
        "-L 1003:192.0.2.2:1003 -L 1004:127.0.0.1:1004 o1"
    ]


def test_every_shown_port_is_forwarded() -> None:
    told = opened.text(listed(vendor_repositories={"grafana": {"uri": "x"}}), "inventories/local")
    shown = set(re.findall(r"localhost:(\d+)", told))
    assert shown == set(re.findall(r"-L (\d+):", told)) == {"1001", "1002", "1003", "1004", "1005"}


def test_grafana_without_a_repository_is_said_to_be_absent() -> None:
    told = opened.text(listed(vendor_repositories={}), "inventories/local")
    assert re.search(r"Grafana: +not installed \(no repository named\)", told)
    assert "1005" not in told


def test_the_edge_is_asked_by_name_with_the_ca() -> None:
    assert opened.edges(listed(), "inventories/local") == [
        "curl --cacert inventories/local/.state/ca.crt --resolve api.example:8443:192.0.2.1 "
        "https://api.example:8443/ready"
    ]


def test_machines_that_are_not_ours_are_reached_by_address() -> None:
    (way,) = opened.tunnels(listed("none"), "inventories/prod")
    assert way.startswith("ssh -l ops -N -L 1001:") and way.endswith(" 192.0.2.2")
    assert "--cacert inventories/prod/ca.crt" in opened.edges(listed("none"), "inventories/prod")[0]


def test_an_environment_that_nobody_watches() -> None:
    alone = listed()
    del alone["ops"], alone["edge"]
    told = opened.text(alone, "inventories/dev")
    assert "none in this environment" in told
    assert "Nothing watches this environment" in told


def test_the_local_inventory_is_understood() -> None:
    told = opened.text(opened.read(PROJECT / "inventories/local"), "inventories/local")
    assert "--resolve api.arches.test:443:" in told
    assert told.count("ssh -F ") == 1
