"""Data hosts fail for real on the running fleet, under writes through the edge; on-call's playbooks bring them back.

What each costs is printed and kept in results/recover: `gap_s` is the longest time between two acknowledged writes.
Marked `long`, for `make test-full`: what takes minutes, or is much like another.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.client import artifact_writer, edge_client, register_and_login, stored
from lib.fleet import REPOSITORY, Fleet
from lib.history import History, WriteLoad, lost
from lib.waiting import wait_for

RESULTS = REPOSITORY / "results" / "recover"
RECOVER = "ansible/recover"


def leads(fleet: Fleet, service: str) -> str | None:
    """Who leads Postgres, Redis or etcd."""
    found = fleet.status()[1][service]["leader"]
    return str(found) if found else None


def recover(fleet: Fleet, incident: str, **arguments: str) -> str:
    """Type a recovery playbook; what it said in one line."""
    words = [word for name, value in {"confirm": "local", **arguments}.items() for word in ("-e", f"{name}={value}")]
    output = " ".join(fleet.playbook(f"{RECOVER}/{incident}.yml", *words, "-e", "restart=true").output.split())
    assert f"{incident}: recovered and proven" in output, output[-3000:]
    return output


def said(fleet: Fleet, incident: str, **arguments: str) -> str:
    """What a recovery playbook says that changes nothing."""
    words = [word for name, value in arguments.items() for word in ("-e", f"{name}={value}")]
    result = fleet.playbook(f"{RECOVER}/{incident}.yml", *words, "-e", "restart=true", check=False)
    assert result.changed == 0 and "Nothing was changed" in result.output, result.output[-3000:]
    return " ".join(result.output.split())


class Writes:
    """Acknowledged writes through the edge while something happens, and what became of them."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.history = fleet, History(folder / "history.jsonl")
        with edge_client(fleet) as client:
            self.user = register_and_login(client)
        self.gap_s = 0.0

    @contextmanager
    def through(self) -> Iterator[None]:
        """They run before, during and after."""
        # Few enough that each can be read back afterwards.
        with WriteLoad(self.history, artifact_writer(self.fleet, self.user), workers=2, pause_s=0.1):
            self.go_on()
            began = time.monotonic()
            yield
            self.go_on()
            self.gap_s = self.history.longest_gap_s(began, time.monotonic())

    def go_on(self) -> None:
        """Wait until some more were acknowledged."""
        before = self.history.counts()["ok"]
        wait_for("writes go on", lambda: self.history.counts()["ok"] >= before + 30, timeout_s=120)

    def keep(self, name: str, **figures: object) -> None:
        """No acknowledged write is missing; the figures are printed and kept."""
        missing = lost(self.history, stored(self.fleet, self.user, self.history))
        counts = self.history.counts()
        told = {"gap_s": round(self.gap_s, 1), "lost": len(missing), **counts, **figures}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
        print(f"{name}: {told}")
        assert missing == []


@pytest.fixture
def writes(healthy: Fleet, tmp_path: Path) -> Writes:
    """Somebody who writes, on a healthy fleet."""
    return Writes(healthy, tmp_path)


def test_the_leaders_host_is_lost_and_an_empty_machine_takes_its_place(writes: Writes) -> None:
    fleet = writes.fleet
    gone = leads(fleet, "postgres")
    assert gone
    with writes.through():
        fleet.machines("killed", gone)
        wait_for("another one leads", lambda: leads(fleet, "postgres") not in (None, gone), timeout_s=60)
        writes.go_on()
        began = time.monotonic()
        recover(fleet, "host-replace", host=gone)
        took = time.monotonic() - began
    writes.keep("host-lost", replaced_in_s=round(took))
    wait_for("everything runs again", fleet.healthy, timeout_s=60, interval_s=1)


def test_a_set_of_redis_that_cannot_choose_gets_a_leader(healthy: Fleet) -> None:
    gone = leads(healthy, "redis")
    assert gone
    secret = (healthy.state / "secrets" / "redis_admin").read_text().strip()
    ask = "redis-cli --tls --cacert /etc/arches/tls/ca.crt --user admin info replication"
    other = next(host for host in healthy.groups["data"] if host != gone)

    def missed_s() -> int:
        lines = healthy.ssh(other, f"REDISCLI_AUTH='{secret}' {ask}").stdout.splitlines()
        found = [line.partition(":")[2] for line in lines if line.startswith("master_link_down_since_seconds:")]
        return int(found[0]) if found else 0

    # Without Sentinels nobody notices; when they are back, no replica is taken that missed its leader for so long.
    for host in healthy.groups["data"]:
        healthy.ssh(host, "systemctl stop redis-sentinel")
    try:
        healthy.machines("killed", gone)
        wait_for("the replicas miss their leader", lambda: missed_s() > 30, timeout_s=90)
        output = recover(healthy, "redis-failover")
        assert leads(healthy, "redis") not in (None, gone), output[-2000:]
    finally:
        healthy.machines("present", gone)
        healthy.ssh(gone, "systemctl start redis-sentinel")


def test_nothing_is_done_where_nothing_is_wrong(healthy: Fleet) -> None:
    """And what cannot be done is refused with the way out."""
    for incident in ("postgres-failover", "redis-failover"):
        assert "nothing is to be done" in said(healthy, incident)
    assert "Every etcd member is part of the majority" in said(healthy, "etcd-member-replace")
    assert "Every standby streams" in said(healthy, "postgres-reinit-replica")
    assert "etcd has a majority" in said(healthy, "data-quorum-lost", gone="data2,data3")
    leader = leads(healthy, "postgres")
    assert leader
    assert "postgres-switchover.yml" in said(healthy, "postgres-reinit-replica", host=leader)
    assert "choose one of" in said(healthy, "host-replace", host="data9")
    assert "even_if_it_answers=true" in said(healthy, "host-replace", host="api1")
    assert "edge-replace.yml" in said(healthy, "host-replace", host="edge1")


@pytest.mark.long
def test_an_etcd_member_that_lost_its_data_joins_anew(writes: Writes) -> None:
    fleet = writes.fleet
    gone = leads(fleet, "etcd")
    assert gone
    with writes.through():
        fleet.ssh(gone, "systemctl stop etcd && rm -rf /var/lib/etcd/arches")
        recover(fleet, "etcd-member-replace")
    writes.keep("etcd-member-replace")
    assert gone in fleet.status()[1]["etcd"]["healthy"]


@pytest.mark.long
def test_a_standby_is_copied_anew(writes: Writes) -> None:
    fleet = writes.fleet
    chosen = fleet.status()[1]["postgres"]["sync"][0]
    made = "stat -c %W $(psql -U postgres -XAtqc 'SHOW data_directory')/PG_VERSION"
    before = fleet.ssh(chosen, made).stdout
    with writes.through():
        recover(fleet, "postgres-reinit-replica", host=chosen)
    writes.keep("postgres-reinit-replica")
    assert fleet.ssh(chosen, made).stdout != before


@pytest.mark.long
def test_patroni_that_stopped_everywhere_is_started_and_leads(writes: Writes) -> None:
    fleet = writes.fleet
    with writes.through():
        for host in fleet.groups["data"]:
            fleet.ssh(host, "systemctl kill --signal=KILL patroni; pkill -KILL -u postgres; systemctl stop patroni")
        assert leads(fleet, "postgres") is None
        recover(fleet, "postgres-failover")
    writes.keep("postgres-failover")


@pytest.mark.long
@pytest.mark.parametrize("who", ["replica", "leader"])
def test_a_damaged_file_of_redis_is_set_aside(healthy: Fleet, who: str) -> None:
    leader = leads(healthy, "redis")
    hurt = leader if who == "leader" else next(host for host in healthy.groups["data"] if host != leader)
    assert hurt
    damage(healthy, hurt)
    if who == "leader":
        wait_for("another one leads", lambda: leads(healthy, "redis") not in (None, hurt), timeout_s=60)
    recover(healthy, "redis-aof-damaged")
    assert healthy.ssh(hurt, "ls -d /var/lib/redis/appendonlydir.damaged-*").stdout
    healthy.ssh(hurt, "rm -r /var/lib/redis/appendonlydir.damaged-*")


def damage(fleet: Fleet, host: str) -> None:
    """The middle of a member's newest file is overwritten while it does not run; it refuses to start."""
    fleet.ssh(
        host,
        "systemctl stop redis-server; cd /var/lib/redis/appendonlydir; "
        "file=$(ls -S *.incr.aof | head -1); "
        "test $(stat -c %s $file) -gt 200 || exit 3; "
        "head -c 64 /dev/urandom | dd of=$file bs=1 seek=$(($(stat -c %s $file) / 2)) conv=notrunc status=none; "
        "systemctl start redis-server || systemctl stop redis-server",
    )


def superuser(fleet: Fleet, statement: str) -> str:
    """What a statement on the leader returns."""
    leader = leads(fleet, "postgres")
    assert leader
    return fleet.ssh(leader, f'psql -U postgres -XAtq -v ON_ERROR_STOP=1 arches -c "{statement}"').stdout.strip()


@pytest.mark.long
def test_who_holds_a_transaction_open_is_named_and_ended(healthy: Fleet) -> None:
    secret = (healthy.state / "secrets" / "postgres_app").read_text().strip()
    pool = "host=/run/postgresql port=6432 user=app dbname=arches"
    unit = f"systemd-run --unit=drill-held --setenv=PGPASSWORD={secret}"
    healthy.ssh("api1", f"{unit} psql -c 'SELECT pg_sleep(600)' '{pool}'")
    held = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND now() - xact_start > '3 s'"
    try:
        wait_for("it holds on", lambda: superuser(healthy, held) == "1", timeout_s=30)
        assert "pg_sleep(600)" in said(healthy, "connections-full", older_than_s="3")
        recover(healthy, "connections-full", older_than_s="3")
        assert superuser(healthy, held) == "0"
    finally:
        healthy.ssh("api1", "systemctl stop drill-held; systemctl reset-failed drill-held", check=False)


@pytest.mark.long
def test_old_rows_are_frozen_after_what_kept_them_is_gone(healthy: Fleet) -> None:
    there = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'orphan')"
    superuser(healthy, f"SELECT pg_create_physical_replication_slot('orphan', true) WHERE NOT {there}")
    for _ in range(50):
        superuser(healthy, "SELECT pg_current_xact_id()")
    assert "slot orphan, used by nobody" in said(healthy, "wraparound", above="20")
    recover(healthy, "wraparound", above="20")
    assert superuser(healthy, f"SELECT {there}") == "f"


@pytest.mark.long
def test_an_edge_is_built_anew(healthy: Fleet) -> None:
    edge = healthy.groups["edge"][0]
    healthy.machines("killed", edge)
    recover(healthy, "edge-replace")


@pytest.mark.long
def test_two_of_three_data_hosts_are_lost(writes: Writes) -> None:
    fleet = writes.fleet
    leader = leads(fleet, "postgres")
    assert leader
    # The last one is a standby: it may lack the newest writes, and the plan says so.
    survivor = next(host for host in fleet.groups["data"] if host != leader)
    gone = ",".join(host for host in fleet.groups["data"] if host != survivor)
    with writes.through():
        pass
    fleet.machines("killed", *gone.split(","))
    assert f"-e gone={gone}" in said(fleet, "data-quorum-lost", confirm="local")
    output = recover(fleet, "data-quorum-lost", gone=gone)
    assert f"served alone {survivor}" in output
    with writes.through():
        pass
    missing = lost(writes.history, stored(fleet, writes.user, writes.history))
    # Nothing was written in the second before the loss: the standby had everything by then.
    assert missing == []
    wait_for("everything runs again", fleet.healthy, timeout_s=60, interval_s=1)
