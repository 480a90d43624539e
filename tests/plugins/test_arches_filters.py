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


@pytest.mark.parametrize(("rate", "hours"), [(300, 1), (1, 1), (50, 24)])
def test_the_journal_holds_its_hours_even_with_its_oldest_file_gone(rate: int, hours: int) -> None:
    limit = int(filters.journal_size(rate, hours).removesuffix("M")) * 1024**2
    assert limit * 7 / 8 >= rate * hours * 3600 * filters.JOURNAL_LINE_BYTES
    assert limit <= rate * hours * 3600 * filters.JOURNAL_LINE_BYTES * 8 / 7 + 1024**2, "not more than is needed"
