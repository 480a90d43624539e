"""`make status`: what it publishes, what it complains about, and what a person sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lib.plugins import PROJECT, load_plugin, load_script

host_state = load_plugin("modules", "host_state")


status = load_script("status")


def answer() -> dict[str, Any]:
    """What ansible/status.yml writes for two healthy hosts."""
    well = {"release": None, "ready": None, "missing_units": []}
    return {
        "hosts": {
            "api1": {**well, "failed_units": [], "units": {"api.socket": "active"}, "release": "1.2.0", "ready": True},
            "data1": {**well, "failed_units": [], "units": {"etcd.service": "active", "patroni.service": "active"}},
        },
        "groups": {"all": ["api1", "data1"], "ungrouped": [], "api": ["api1"], "data": ["data1"]},
        "addresses": {"api1": "192.0.2.21", "data1": "192.0.2.31"},
        "fleet": {
            "postgres": {"leader": "data1", "sync": [], "members": {}},
            "redis": {"leader": "data1", "replicas": []},
            "etcd": {"leader": "data1", "healthy": ["data1"], "differing": []},
        },
        "complaints": [],
        "optional_units": ["grafana-server.service"],
        "proofs": [],
        "name": "api.example",
        "edge": "192.0.2.11",
        "ca": str(PROJECT / "ca.crt"),
    }


def test_the_published_form() -> None:
    shown = status.document(answer())
    assert shown["hosts"]["data1"] == {
        "groups": ["data"],
        "address": "192.0.2.31",
        "units": {"etcd.service": "active", "patroni.service": "active"},
    }
    assert (shown["postgres"]["leader"], shown["postgres"]["sync"]) == ("data1", [])
    assert shown["redis"]["leader"] == "data1"
    assert shown["release"] == {"api1": "1.2.0"}
    assert shown["complaints"] == []


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (lambda a: a["hosts"].update(data1={"unreachable": True}), "data1: cannot be reached"),
        (lambda a: a["hosts"].update(data1={}), "data1: cannot be reached"),
        (lambda a: a["hosts"]["data1"]["units"].update({"etcd.service": "failed"}), "data1: etcd.service is failed"),
        (lambda a: a["hosts"]["data1"]["failed_units"].append("x.service"), "data1: x.service is failed"),
        (lambda a: a["hosts"]["api1"].update(ready=False), "api1: the API is not ready"),
        (lambda a: a["hosts"]["data1"].update(release="1.1.0"), "the API hosts serve different releases: 1.1.0, 1.2.0"),
        (lambda a: a["complaints"].append("postgres: nobody leads"), "postgres: nobody leads"),
    ],
)
def test_each_fault_is_named(breakage: Callable[[dict[str, Any]], None], complaint: str) -> None:
    broken = answer()
    breakage(broken)
    assert status.document(broken)["complaints"] == [complaint]


def test_what_its_vendor_has_not_delivered_is_no_complaint() -> None:
    """Only a unit that is optional and not installed; one that stopped, or is needed, is named."""
    vendor = answer()
    vendor["hosts"]["data1"]["units"]["grafana-server.service"] = "inactive"
    vendor["hosts"]["data1"]["missing_units"] = ["grafana-server.service"]
    shown = status.document(vendor)
    assert shown["complaints"] == []
    assert shown["hosts"]["data1"]["units"]["grafana-server.service"] == "absent"
    assert status.table(shown).splitlines()[2].split()[3] == "2/2"
    vendor["hosts"]["data1"]["missing_units"] = []
    assert status.document(vendor)["complaints"] == ["data1: grafana-server.service is inactive"]
    vendor["hosts"]["data1"]["units"]["etcd.service"] = "inactive"
    vendor["hosts"]["data1"]["missing_units"] = ["grafana-server.service", "etcd.service"]
    assert status.document(vendor)["complaints"] == ["data1: etcd.service is inactive"]


def test_the_table_has_a_line_for_each_host() -> None:
    lines = status.table(status.document(answer())).splitlines()
    assert lines[1].split() == ["api1", "api", "192.0.2.21", "1/1", "1.2.0"]
    assert lines[2].split("  ")[-1] == "postgres, redis, etcd"


def test_the_story_can_be_copied() -> None:
    told = status.story(status.document(answer()), answer())
    assert "--resolve api.example:443:192.0.2.11" in told
    assert "Postgres is led by data1" in told


def test_units_are_read_block_by_block() -> None:
    shown = "Id=etcd.service\nActiveState=active\n\nId=patroni.service\nActiveState=failed\n"
    assert host_state.unit_states(shown) == {"etcd.service": "active", "patroni.service": "failed"}
    assert host_state.unit_states("") == {}


def test_units_without_a_file_are_known() -> None:
    shown = "Id=a.service\nLoadState=loaded\nActiveState=active\n\n"
    shown += "Id=b.service\nLoadState=not-found\nActiveState=inactive\n"
    assert host_state.missing_units(shown) == ["b.service"]
    assert host_state.unit_states(shown) == {"a.service": "active", "b.service": "inactive"}
    assert host_state.missing_units("") == []


PROVEN = {"at": 1000.0, "duration_s": 41.3, "rpo_s": 38.4, "backup": "20260101-020000F"}
FAILED = {"started": 12_000.0, "finished": 12_040.0, "proven": False, "why": "wal: a segment is missing"}


@pytest.mark.parametrize(
    ("reports", "line"),
    [
        ([], "last proven restore: not known here, no ops host was asked"),
        ([{}], "no restore has been proven yet"),
        (
            [{"started": 950.0, "finished": 1000.0, "proven": True, "last_proven": PROVEN}, {}],
            "last proven restore 03:12 ago, took 41 s, RPO 38 s",
        ),
        (
            [FAILED | {"last_proven": PROVEN}],
            "last proven restore 03:12 ago, took 41 s, RPO 38 s; "
            "the attempt 00:08 ago failed: wal: a segment is missing",
        ),
        (
            [FAILED | {"last_proven": None}],
            "no restore has been proven yet; the attempt 00:08 ago failed: wal: a segment is missing",
        ),
        (
            [FAILED | {"last_proven": None, "finished": None, "why": "it runs, or was killed"}],
            "no restore has been proven yet; the attempt 00:08 ago has no end: it runs, or was killed",
        ),
    ],
)
def test_the_last_proven_restore_is_one_line(reports: list[dict[str, Any]], line: str) -> None:
    shown = status.document(answer() | {"proofs": reports})
    assert status.restore_line(shown["restore"], 1000 + 3 * 3600 + 12 * 60) == line


def test_a_long_time_is_told_in_hours() -> None:
    assert status.ago(50 * 3600 + 59) == "50:00 ago"
