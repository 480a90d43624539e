"""What is derived from the service map and the inventory."""

from __future__ import annotations

from typing import Any

import pytest

from lib.plugins import PROJECT, load_plugin

filters = load_plugin("filter", "arches")

HOSTVARS = {name: {"address": f"10.0.0.{number}", "cpus": 2} for number, name in enumerate(["e", "a", "b", "d"], 1)}
GROUPS = {"all": list(HOSTVARS), "edge": ["e"], "api": ["a", "b"], "data": ["d"], "ops": []}
CONTROLLER = ["10.9.9.9/32"]


def rules(host: str, **service: Any) -> list[dict[str, Any]]:
    """Rules of a host for a map of one service."""
    services = {"toy": {"hosts": "api", "port": 8080, "from": ["edge"], "tls": "none", **service}}
    found: list[dict[str, Any]] = filters.firewall_rules(services, host, GROUPS, HOSTVARS, CONTROLLER)
    return found


def rule(ports: str, *sources: str) -> list[dict[str, Any]]:
    """The one rule that is expected."""
    return [{"comment": "toy", "ports": ports, "sources": list(sources)}]


def test_only_hosts_of_the_service_get_a_rule() -> None:
    assert rules("a") == rule("8080", "10.0.0.1")
    assert rules("d") == []
    assert rules("d", hosts="all") == rule("8080", "10.0.0.1")


@pytest.mark.parametrize(
    ("parties", "sources"),
    [
        (["edge", "controller"], ["10.0.0.1", "10.9.9.9"]),
        (["api", "data", "api"], ["10.0.0.2/31", "10.0.0.4"]),
        (["edge", "world"], ["any"]),
    ],
)
def test_parties_become_addresses(parties: list[str], sources: list[str]) -> None:
    assert rules("a", **{"from": parties}) == rule("8080", *sources)


def test_a_controller_network_around_the_hosts_is_no_conflict() -> None:
    """nft refuses overlapping networks in one set."""
    services = {"toy": {"hosts": "api", "port": 1, "from": ["edge", "controller"]}}
    (found,) = filters.firewall_rules(services, "a", GROUPS, HOSTVARS, ["10.0.0.0/8", "192.0.2.1/32"])
    assert found["sources"] == ["10.0.0.0/8", "192.0.2.1"]


@pytest.mark.parametrize("parties", [[], ["ops"], ["absent"]])
def test_a_service_that_nobody_may_reach_has_no_rule(parties: list[str]) -> None:
    """Loopback only; a group without hosts admits nobody, not everybody."""
    assert rules("a", **{"from": parties}) == []


def test_several_ports_are_a_range() -> None:
    assert rules("a", count="per_core") == rule("8080-8081", "10.0.0.1")
    assert rules("a", count=3) == rule("8080-8082", "10.0.0.1")
    assert rules("a", count=1) == rule("8080", "10.0.0.1")


def test_data_hosts_answer_to_postgres_and_the_edge_to_the_api() -> None:
    (data,) = filters.certificates("d", "10.0.0.4", ["data"], "x.test")
    assert data == {
        "name": "host",
        "common_name": "d",
        "names": ["d", "postgres", "localhost", "10.0.0.4", "127.0.0.1"],
    }
    own, public = filters.certificates("e", "10.0.0.1", ["edge"], "x.test")
    assert "postgres" not in own["names"] and public["names"] == ["api.x.test"]


def test_names_of_hosts_and_of_the_api() -> None:
    assert filters.host_lines(["a"], HOSTVARS, "x.test") == [{"address": "10.0.0.2", "names": ["a.x.test", "a"]}]
    assert filters.edge_lines(["e"], HOSTVARS, "x.test") == [{"address": "10.0.0.1", "names": ["api.x.test"]}]


def test_every_filter_is_offered_by_its_own_name() -> None:
    assert {name: function.__name__ for name, function in filters.FilterModule().filters().items()} == {
        name: name for name in filters.FilterModule().filters()
    }


def test_the_guard_admits_what_the_rules_admit() -> None:
    """The firewall's check against locking out whoever applies it."""
    source = (PROJECT / "roles/firewall/files/admits_this_run.py").read_text()
    guard: dict[str, Any] = {"__name__": "guard"}
    exec(compile(source, "admits_this_run.py", "exec"), guard)
    given = rules("a", port=22, **{"from": ["controller"]})
    assert guard["admits"](given, "10.9.9.9", 22)
    assert not guard["admits"](given, "10.9.9.8", 22) and not guard["admits"](given, "10.9.9.9", 2222)
    assert guard["admits"](rules("a", port=20, count=3, **{"from": ["world"]}), "192.0.2.1", 22)


MEASURED = {
    "metrics_gateway": {"hosts": "all", "port": 9998},
    "one": {"hosts": "data", "port": 9100, "metrics": {}},
    "some": {"hosts": "api", "port": 9090, "count": "per_core", "metrics": {}},
    "silent": {"hosts": "api", "port": 1},
}


def test_what_is_measured_is_scraped_through_its_hosts_gateway() -> None:
    one, some = filters.scrape_jobs(MEASURED, GROUPS, HOSTVARS)
    assert one == {
        "job": "one",
        "targets": [{"target": "10.0.0.4:9998", "module": "one", "host": "d", "instance": "d"}],
    }
    assert some["job"] == "some"
    assert [(t["module"], t["instance"]) for t in some["targets"]] == [
        ("some-1", "a:1"), ("some-2", "a:2"), ("some-1", "b:1"), ("some-2", "b:2"),
    ]  # fmt: skip


def test_a_probe_asks_every_host_of_its_service() -> None:
    services = {"web": {"hosts": "api", "port": 443}}
    probe = {"job": "probe_web", "module": "http", "service": "web", "target": "https://{address}:{port}/ready"}
    assert filters.probe_jobs([probe], services, GROUPS, HOSTVARS) == [
        {
            "job": "probe_web",
            "module": "http",
            "targets": [
                {"host": "a", "target": "https://10.0.0.2:443/ready"},
                {"host": "b", "target": "https://10.0.0.3:443/ready"},
            ],
        }
    ]


def modules(host: str, **service: Any) -> dict[str, Any]:
    """The gateway's modules of a host for a map of one service."""
    services = {"toy": {"hosts": "api", "port": 9000, "from": [], "tls": "none", "metrics": {}, **service}}
    found: dict[str, Any] = filters.gateway_modules(services, host, GROUPS, HOSTVARS)
    return found


def module(port: int, **other: Any) -> dict[str, Any]:
    """A module on loopback, as far as nothing else is said."""
    return {"scheme": "http", "address": "127.0.0.1", "port": port, "path": "/metrics", **other}


def test_a_service_with_metrics_is_a_module_on_its_own_hosts() -> None:
    assert modules("a") == modules("a", metrics=None) == {"toy": module(9000)}
    assert modules("d") == {}
    assert modules("d", hosts="all") == {"toy": module(9000)}


def test_a_service_without_metrics_is_no_module() -> None:
    services = {"toy": {"hosts": "api", "port": 9000, "from": []}}
    assert filters.gateway_modules(services, "a", GROUPS, HOSTVARS) == {}


def test_several_ports_are_numbered_modules() -> None:
    expected = {"toy-1": module(9000), "toy-2": module(9001)}
    assert modules("a", count="per_core") == expected
    assert modules("a", count=2) == expected


def test_a_single_core_has_one_module_of_the_plain_name() -> None:
    services = {"toy": {"hosts": "api", "port": 9000, "from": [], "count": "per_core", "metrics": {}}}
    found = filters.gateway_modules(services, "a", GROUPS, {"a": {"address": "10.0.0.2", "cpus": 1}})
    assert found == {"toy": module(9000)}


def test_a_service_that_does_not_listen_on_loopback_is_asked_at_the_hosts_address() -> None:
    found = modules("a", metrics={"scheme": "https", "address": "host", "path": "/m"})
    assert found == {"toy": module(9000, scheme="https", address="10.0.0.2", path="/m")}


@pytest.mark.parametrize(("rate", "hours"), [(300, 1), (1, 1), (50, 24)])
def test_the_journal_holds_its_hours_even_with_its_oldest_file_gone(rate: int, hours: int) -> None:
    limit = int(filters.journal_size(rate, hours).removesuffix("M")) * 1024**2
    assert limit * 7 / 8 >= rate * hours * 3600 * filters.JOURNAL_LINE_BYTES
    assert limit <= rate * hours * 3600 * filters.JOURNAL_LINE_BYTES * 8 / 7 + 1024**2, "not more than is needed"
