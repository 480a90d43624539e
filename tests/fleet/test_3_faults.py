"""Faults under load: what was acknowledged is there afterwards, and the fleet comes back by itself."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from lib.client import artifact_writer, register_and_login, stored
from lib.etcd import etcd
from lib.fleet import Fleet
from lib.history import History, WriteLoad, lost
from lib.leaders import leader, leads
from lib.waiting import wait_for


def acknowledged(history: History) -> int:
    return history.counts()["ok"]


# With an empty machine instead of the lost one: tests/drills/test_recover_data.py, on every change.
@pytest.mark.long
def test_writes_survive_the_loss_of_the_leaders_host(
    healthy: Fleet, user: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The leader of Postgres falls silent under load; another takes over, and the host comes back as a replica.

    Its lease alone lasts 20 s: the watchers have ended it.
    """
    history = History(tmp_path / "history.jsonl")
    former = leader(healthy)
    with WriteLoad(history, artifact_writer(healthy, user)):
        wait_for("the load runs", lambda: acknowledged(history) >= 50, timeout_s=30)
        killed_at = time.monotonic()
        healthy.machines("killed", former)
        dead_at = time.monotonic()
        wait_for(
            "writes go on",
            lambda: any(e.event == "ok" and e.at > dead_at + 3 for e in history.entries),
            timeout_s=45,
        )
        resumed = acknowledged(history)
        wait_for("the load goes on", lambda: acknowledged(history) >= resumed + 50, timeout_s=30)
        ended_at = time.monotonic()
    gap = history.longest_gap_s(killed_at, ended_at)
    record_property("write_gap_s", round(gap, 1))
    print(f"leader {former} lost: longest gap between acknowledged writes {gap:.1f} s, {dict(history.counts())}")
    assert gap <= 20
    assert lost(history, stored(healthy, user, history)) == []
    assert acknowledged(history) > 100

    after = leader(healthy)
    assert after != former
    healthy.machines("present", former)
    wait_for("the lost host is back in its place", healthy.healthy, timeout_s=120, interval_s=1)
    assert leader(healthy) == after


def test_the_api_answers_while_redis_fails_over(healthy: Fleet, api: httpx.Client, user: dict[str, str]) -> None:
    former = leader(healthy, "redis")
    healthy.ssh(former, "systemctl kill -s KILL redis-server; systemctl stop redis-server")
    try:
        for n in range(10):
            answer = api.post("/v1/artifacts", json={"name": f"during-{n}", "text": "Redis is away"}, headers=user)
            assert answer.status_code == 201, answer.text
        wait_for(
            "Sentinel chose another leader",
            lambda: leads(healthy, "redis") not in (None, former),
            timeout_s=40,
            interval_s=1,
        )
    finally:
        healthy.ssh(former, "systemctl start redis-server")
    register_and_login(api)


# Typed on a member of etcd: this one leads.
MOVE = """etcdctl move-leader "$(etcdctl member list | awk -F', ' -v name="$(hostname)" '$3 == name {print $1}')" """


def test_etcd_is_led_from_another_host_than_postgres(healthy: Fleet) -> None:
    """Were both mute, nobody could lead Postgres for 20 s (roles/lease_watcher)."""
    host = leader(healthy)

    def elsewhere() -> bool:
        return leads(healthy, "etcd") not in (None, host)

    wait_for("etcd is led from another host", elsewhere, timeout_s=30)
    etcd(healthy, host, MOVE)
    wait_for("etcd is led from another host again", elsewhere, timeout_s=30)
    assert leader(healthy) == host


def test_a_second_run_changes_nothing_and_keeps_the_leaders_that_failovers_made(healthy: Fleet) -> None:
    before = healthy.status()[1]
    starts = healthy.unit_starts()
    result = healthy.playbook("site.yml")
    assert result.changed == 0, result.output[-4000:]
    after = healthy.status()[1]
    assert after["postgres"]["leader"] == before["postgres"]["leader"]
    assert after["redis"]["leader"] == before["redis"]["leader"]
    assert healthy.unit_starts() == starts


def test_a_killed_pooler_is_back_within_a_second(healthy: Fleet, user: dict[str, str], tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    writers = 4
    with WriteLoad(history, artifact_writer(healthy, user), workers=writers):
        wait_for("the load runs", lambda: acknowledged(history) >= 40, timeout_s=30)
        killed_at = time.monotonic()
        healthy.ssh("api1", "systemctl kill -s KILL pgbouncer")
        before = acknowledged(history)
        wait_for("the load goes on", lambda: acknowledged(history) >= before + 100, timeout_s=30)
    stamps = healthy.ssh(
        "api1", "systemctl show pgbouncer -p InactiveEnterTimestampMonotonic -p ActiveEnterTimestampMonotonic --value"
    ).stdout.split()
    down_s = abs(int(stamps[1]) - int(stamps[0])) / 1e6
    assert down_s <= 1, f"pgbouncer was down for {down_s} s"
    broken = [e for e in history.entries if e.event in ("fail", "unknown")]
    print(f"pooler killed: {dict(history.counts())}, down {down_s:.2f} s")
    assert len(broken) <= writers, "only requests in flight may fail"
    assert all(killed_at <= e.at <= killed_at + 5 for e in broken)
    assert lost(history, stored(healthy, user, history)) == []


# With `host-replace` instead of site.yml: tests/drills/test_recover_data.py.
@pytest.mark.long
def test_a_data_host_made_anew_rejoins_with_one_run(healthy: Fleet, api: httpx.Client, user: dict[str, str]) -> None:
    created = api.post("/v1/artifacts", json={"name": "keep", "text": "before the loss"}, headers=user).json()["id"]
    status = healthy.status()[1]
    host = next(h for h in healthy.groups["data"] if h not in (status["postgres"]["leader"], status["redis"]["leader"]))
    healthy.machines("killed", host)
    healthy.machines("absent", host)
    healthy.machines("present", host)
    healthy.playbook("site.yml")
    wait_for("the new host is a full member", healthy.healthy, timeout_s=120, interval_s=1)
    assert api.get(f"/v1/artifacts/{created}", headers=user).status_code == 200
    assert healthy.playbook("site.yml", "--limit", host).changed == 0


def test_rebooted_hosts_come_back_by_themselves(healthy: Fleet, api: httpx.Client) -> None:
    """One of each group, all at once."""
    hosts = [healthy.groups[group][-1] for group in ("edge", "api", "data", "ops")]

    def boots(host: str) -> str:
        return healthy.ssh(host, "journalctl --list-boots -q | wc -l", check=False).stdout

    before = {host: boots(host) for host in hosts}
    for host in hosts:
        healthy.ssh(host, "systemctl reboot", check=False)
    for host in hosts:
        wait_for(f"{host} has booted again", lambda h=host: boots(h) not in ("", before[h]), timeout_s=60)
    wait_for("the fleet is healthy again", healthy.healthy, timeout_s=120, interval_s=1)
    assert api.get("/health/ready").status_code == 200
