"""Data hosts fail for real on the running fleet, under writes through the edge; on-call's playbooks bring them back.

Marked `long`, for `make test-full`: what takes minutes, or is much like another.
"""

import pytest

from drills.recovering import Writes, said
from lib.fleet import Fleet
from lib.leaders import leader, leads
from lib.postgres import sql
from lib.redis import redis
from lib.waiting import wait_for


def test_the_leaders_host_is_lost_and_an_empty_machine_takes_its_place(writes: Writes) -> None:
    fleet = writes.fleet
    gone = leader(fleet)
    with writes.through():
        fleet.machines("killed", gone)
        wait_for("another one leads", lambda: leads(fleet, "postgres") not in (None, gone), timeout_s=60)
        writes.go_on()
        writes.recover("host-replace", host=gone)
    writes.keep("host-replace")
    wait_for("everything runs again", fleet.healthy, timeout_s=60, interval_s=1)


def test_a_set_of_redis_that_cannot_choose_gets_a_leader(writes: Writes) -> None:
    fleet = writes.fleet
    gone = leader(fleet, "redis")
    other = next(host for host in fleet.groups["data"] if host != gone)

    def missed_s() -> int:
        lines = redis(fleet, other, "INFO replication")
        found = [line.partition(":")[2] for line in lines if line.startswith("master_link_down_since_seconds:")]
        return int(found[0]) if found else 0

    # Without Sentinels nobody notices; when they are back, no replica is taken that missed its leader for so long.
    for host in fleet.groups["data"]:
        fleet.ssh(host, "systemctl stop redis-sentinel")
    try:
        with writes.through():
            fleet.machines("killed", gone)
            # A silent leader is missed from Redis' repl-timeout on, 60 s.
            wait_for("the replicas miss their leader", lambda: missed_s() > 30, timeout_s=150)
            output = writes.recover("redis-failover")
            assert leads(fleet, "redis") not in (None, gone), output[-2000:]
    finally:
        fleet.machines("present", gone)
        for host in fleet.groups["data"]:
            fleet.ssh(host, "systemctl start redis-sentinel")
    writes.keep("redis-failover")


def test_nothing_is_done_where_nothing_is_wrong(healthy: Fleet) -> None:
    """And what cannot be done is refused with the way out."""
    for incident in ("postgres-failover", "redis-failover"):
        assert "nothing is to be done" in said(healthy, incident)
    assert "Every etcd member is part of the majority" in said(healthy, "etcd-member-replace")
    assert "Every standby streams" in said(healthy, "postgres-reinit-replica")
    assert "etcd has a majority" in said(healthy, "data-quorum-lost", gone="data2,data3")
    first = leader(healthy)
    assert "postgres-switchover.yml" in said(healthy, "postgres-reinit-replica", host=first)
    assert "choose one of" in said(healthy, "host-replace", host="data9")
    assert "even_if_it_answers=true" in said(healthy, "host-replace", host="api1")
    assert "edge-replace.yml" in said(healthy, "host-replace", host="edge1")


@pytest.mark.long
def test_an_etcd_member_that_lost_its_data_joins_anew(writes: Writes) -> None:
    fleet = writes.fleet
    gone = leader(fleet, "etcd")
    with writes.through():
        fleet.ssh(gone, "systemctl stop etcd && rm -rf /var/lib/etcd/arches")
        writes.recover("etcd-member-replace")
    writes.keep("etcd-member-replace")
    assert gone in fleet.status()[1]["etcd"]["healthy"]


@pytest.mark.long
def test_a_standby_is_copied_anew(writes: Writes) -> None:
    fleet = writes.fleet
    chosen = fleet.status()[1]["postgres"]["sync"][0]
    made = "stat -c %W $(psql -U postgres -XAtqc 'SHOW data_directory')/PG_VERSION"
    before = fleet.ssh(chosen, made).stdout
    with writes.through():
        writes.recover("postgres-reinit-replica", host=chosen)
    writes.keep("postgres-reinit-replica")
    assert fleet.ssh(chosen, made).stdout != before


@pytest.mark.long
def test_patroni_that_stopped_everywhere_is_started_and_leads(writes: Writes) -> None:
    fleet = writes.fleet
    with writes.through():
        for host in fleet.groups["data"]:
            fleet.ssh(host, "systemctl kill --signal=KILL patroni; pkill -KILL -u postgres; systemctl stop patroni")
        assert leads(fleet, "postgres") is None
        writes.recover("postgres-failover")
    writes.keep("postgres-failover")


@pytest.mark.long
@pytest.mark.parametrize("who", ["replica", "leader"])
def test_a_damaged_file_of_redis_is_set_aside(writes: Writes, who: str) -> None:
    fleet = writes.fleet
    first = leader(fleet, "redis")
    hurt = first if who == "leader" else next(host for host in fleet.groups["data"] if host != first)
    with writes.through():
        damage(fleet, hurt)
        if who == "leader":
            wait_for("another one leads", lambda: leads(fleet, "redis") not in (None, hurt), timeout_s=60)
        writes.recover("redis-aof-damaged")
    writes.keep(f"redis-aof-damaged-{who}")
    assert fleet.ssh(hurt, "ls -d /var/lib/redis/appendonlydir.damaged-*").stdout
    fleet.ssh(hurt, "rm -r /var/lib/redis/appendonlydir.damaged-*")


@pytest.mark.long
def test_where_every_file_of_redis_is_damaged_one_is_repaired(writes: Writes) -> None:
    fleet = writes.fleet
    first = leader(fleet, "redis")
    others = [host for host in fleet.groups["data"] if host != first]
    with writes.through():
        for host in (*others, first):
            damage(fleet, host)
        assert "-e repair=true" in said(fleet, "redis-aof-damaged")
        assert "Name with -e host=" in said(fleet, "redis-aof-damaged", repair="true")
        output = writes.recover("redis-aof-damaged", host=first, repair="true")
        assert leads(fleet, "redis") == first, output[-2000:]
        assert "uncated" in output, "on-call hears what was cut off"
        assert f"file of {' and '.join(others)} is damaged" in writes.recover("redis-aof-damaged")
    writes.keep("redis-aof-damaged-everywhere")
    for host in fleet.groups["data"]:
        fleet.ssh(host, "rm -r /var/lib/redis/appendonlydir.damaged-*")


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


@pytest.mark.long
def test_who_holds_a_transaction_open_is_named_and_ended(writes: Writes) -> None:
    fleet = writes.fleet
    secret = (fleet.state / "secrets" / "postgres_app").read_text().strip()
    pool = "host=/run/postgresql port=6432 user=app dbname=arches"
    unit = f"systemd-run --unit=drill-held --setenv=PGPASSWORD={secret}"
    fleet.ssh("api1", f"{unit} psql -c 'SELECT pg_sleep(600)' '{pool}'")
    held = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND now() - xact_start > '3 s'"
    try:
        wait_for("it holds on", lambda: sql(fleet, held) == "1", timeout_s=30)
        with writes.through():
            assert "pg_sleep(600)" in said(fleet, "connections-full", older_than_s="3")
            writes.recover("connections-full", older_than_s="3")
        assert sql(fleet, held) == "0"
    finally:
        fleet.ssh("api1", "systemctl stop drill-held; systemctl reset-failed drill-held", check=False)
    writes.keep("connections-full-held")


@pytest.mark.long
def test_a_pool_that_was_left_paused_goes_on(writes: Writes) -> None:
    fleet = writes.fleet
    port = fleet.services["pgbouncer"]["port"]
    console = f"runuser -u postgres -- psql -XAtq 'host=/run/postgresql port={port} user=pgbouncer dbname=pgbouncer' -c"
    try:
        with writes.through():
            fleet.ssh("api2", f"{console} 'PAUSE arches'")
            assert "pool of api2" in (told := said(fleet, "connections-full")) and ", paused" in told
            writes.recover("connections-full")
            assert "No pool is paused" in said(fleet, "connections-full")
    finally:
        fleet.ssh("api2", f"{console} 'RESUME arches'", check=False)
    writes.keep("connections-full-paused")


@pytest.mark.long
def test_old_rows_are_frozen_after_what_kept_them_is_gone(writes: Writes) -> None:
    fleet = writes.fleet
    there = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'orphan')"
    sql(fleet, f"SELECT pg_create_physical_replication_slot('orphan', true) WHERE NOT {there}")
    for _ in range(50):
        sql(fleet, "SELECT pg_current_xact_id()")
    with writes.through():
        assert "slot orphan, used by nobody" in said(fleet, "wraparound", above="20")
        writes.recover("wraparound", above="20")
    writes.keep("wraparound")
    assert sql(fleet, f"SELECT {there}") == "f"


@pytest.mark.long
def test_an_edge_is_built_anew(writes: Writes) -> None:
    with writes.through():
        writes.fleet.machines("killed", writes.fleet.groups["edge"][0])
        writes.recover("edge-replace")
    writes.keep("edge-replace")


@pytest.mark.long
def test_two_of_three_data_hosts_are_lost(writes: Writes) -> None:
    fleet = writes.fleet
    first = leader(fleet)
    # The last one is a standby: it may lack the newest writes, and the plan says so.
    survivor = next(host for host in fleet.groups["data"] if host != first)
    gone = ",".join(host for host in fleet.groups["data"] if host != survivor)
    with writes.through():
        pass
    fleet.machines("killed", *gone.split(","))
    assert f"-e gone={gone}" in said(fleet, "data-quorum-lost", confirm="local")
    with writes.until_they_go_on():
        output = writes.recover("data-quorum-lost", gone=gone)
    assert f"served alone {survivor}" in output
    # Nothing was written in the second before the loss: the standby had everything by then.
    writes.keep("data-quorum-lost")
    wait_for("everything runs again", fleet.healthy, timeout_s=60, interval_s=1)
