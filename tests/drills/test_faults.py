"""Parts of the fleet fail for real while people outside work with the API: what does it cost, and is anything lost?

Nothing that was acknowledged may be missing, doubled or changed, whatever fails. What a fault may cost otherwise is in
faults.py; what it did cost is printed and kept in results/faults. FAULTS="host-lost redis-hung" chooses; REPEATS=5.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from drills.faults import CUT, FAULTS, Fault, drop, on
from drills.rollout.judge import Allowance, complaints
from drills.rollout.load import Load, Stored
from lib.client import artifact_writer, edge_client, register_and_login
from lib.fleet import Fleet
from lib.history import History, Outcome, WriteLoad, lost
from lib.leaders import leader, leads
from lib.postgres import sql
from lib.redis import redis
from lib.waiting import wait_for

CHOSEN = os.environ.get("FAULTS", "").split() or list(FAULTS)


def cost_of(fleet: Fleet, fault: Fault, name: str, folder: Path) -> Load:
    """The fault happens and is undone while people work."""
    with edge_client(fleet) as client:
        write = artifact_writer(fleet, register_and_login(client))
    with Load(fleet, name, folder, "faults") as load:
        undo = fault.do(fleet)
        try:
            load.mark("it is so")
            load.steady(fault.lasts_s)
            wait_for("writes go on", lambda: write("probe")[0] == "ok", timeout_s=120)
        finally:
            undo()
        load.mark("over")
        wait_for("the fleet is healthy again", fleet.healthy, timeout_s=180, interval_s=2)
    return load


@pytest.mark.long
@pytest.mark.parametrize("name", CHOSEN)
def test_nothing_is_lost_when(
    healthy: Fleet, tmp_path: Path, record_property: Callable[[str, object], None], name: str, repeat: int
) -> None:
    fault = FAULTS[name]
    put_back = fault.prepare(healthy)
    try:
        load = cost_of(healthy, fault, f"{name}-{repeat}", tmp_path)
        # A segment that cannot be archived ends every way back to a later moment: two leaders wrote one timeline.
        healthy.ssh(leader(healthy), "runuser -u postgres -- pgbackrest --stanza=arches check", timeout_s=120)
    finally:
        put_back()
    for figure in ("write_gap_s", "failures", "retries", "p99_ms", "worst_ms"):
        record_property(figure, getattr(load.verdict, figure))
    assert load.stored == Stored()
    allowed = Allowance(failures=fault.failures, worst_s=fault.gap_s + 15, gap_s=fault.gap_s)
    assert not list(complaints(load.verdict, allowed))
    assert load.verdict.write_gap_s <= fault.gap_s


# Controls: a client that sees nothing of these would see nothing of the faults above either.


# A standby that lacks much would not lead either.
ASYNCHRONOUS = {"synchronous_mode": False, "synchronous_mode_strict": False, "maximum_lag_on_failover": 2**30}


def configured(fleet: Fleet, settings: Mapping[str, object]) -> dict[str, object]:
    """Patroni's dynamic settings, by its own tool; what they were before."""
    host = fleet.groups["data"][0]
    before = yaml.safe_load(fleet.ssh(host, "patronictl show-config").stdout)
    words = " ".join(f"-s {name}={json.dumps(value)}" for name, value in settings.items())
    fleet.ssh(host, f"patronictl edit-config --force --quiet {words}")
    return {name: before.get(name) for name in settings}


@pytest.mark.long
def test_without_synchronous_standbys_acknowledged_writes_are_lost(healthy: Fleet, tmp_path: Path) -> None:
    """Replication is asynchronous and cut off for the leader's last seconds: whoever follows it lacks them."""
    gone = leader(healthy)
    others = [host for host in healthy.groups["data"] if host != gone]
    as_ever = configured(healthy, ASYNCHRONOUS)
    try:
        wait_for("no write waits", lambda: sql(healthy, "SHOW synchronous_standby_names") == "", timeout_s=30)
        with Load(healthy, "control-asynchronous", tmp_path, "faults") as load:
            for host in others:
                healthy.ssh(host, drop("input", "5432", "sport"))
            load.steady(5)
            healthy.machines("killed", gone)
            for host in others:
                healthy.ssh(host, CUT)
            wait_for("another one leads", lambda: leads(healthy, "postgres") not in (None, gone), timeout_s=90)
            load.steady(5)
    finally:
        healthy.machines("present", gone)
        configured(healthy, as_ever)
    assert load.stored.lost, "the client does not see that acknowledged writes are gone"


# Longer than a request has one open, shorter than what a planned switchover refuses to wait for. Nobody waits for what
# is called psql: that is who asks meanwhile whether somebody leads.
TRANSACTION = """
. /etc/arches/api.env
export PGAPPNAME=drill
exec psql -XAtq -v ON_ERROR_STOP=1 -d "$DATABASE_URL" \\
  -c "BEGIN; INSERT INTO drill_transactions VALUES ('%s'); SELECT pg_sleep(1.5); COMMIT"
"""


def transaction(fleet: Fleet, prefix: str) -> Callable[[str], tuple[Outcome, str | None]]:
    """A transaction through the pool of an API host, as the application; it is not tried again."""

    def write(key: str) -> tuple[Outcome, str | None]:
        row = f"{prefix}-{key}"
        done = fleet.ssh("api1", TRANSACTION % row, check=False)
        return ("ok", row) if done.returncode == 0 else ("unknown", done.stderr)

    return write


@pytest.fixture
def with_table(healthy: Fleet) -> Iterator[Fleet]:
    """The fleet, with a table for those transactions."""
    sql(
        healthy,
        "CREATE TABLE IF NOT EXISTS drill_transactions (key text)",
        "GRANT INSERT ON drill_transactions TO PUBLIC",
    )
    yield healthy
    sql(healthy, "DROP TABLE drill_transactions")


@pytest.mark.long
def test_a_switchover_without_a_pause_cuts_transactions(with_table: Fleet, tmp_path: Path) -> None:
    """The planned one lets them end first; one that neither a playbook nor the guards prepare does not.

    Requests are no measure of it: what was not committed, the API does again.
    """
    fleet = with_table
    guards = on(
        lambda fleet: fleet.groups["api"], "systemctl stop arches-pool-guard", "systemctl start arches-pool-guard"
    )
    planned, bare = History(tmp_path / "planned.jsonl"), History(tmp_path / "bare.jsonl")
    with WriteLoad(planned, transaction(fleet, "planned")):
        fleet.playbook("ansible/recover/postgres-switchover.yml", "-e", "confirm=local")
    wait_for("the fleet is healthy", fleet.healthy, timeout_s=90, interval_s=1)
    on_again = guards(fleet)
    try:
        with (
            Load(fleet, "control-no-pause", tmp_path, "faults") as load,
            WriteLoad(bare, transaction(fleet, "bare")),
        ):
            for _ in range(3):
                load.mark("switchover")
                fleet.ssh(leader(fleet), "patronictl switchover --force", timeout_s=120)
                wait_for("the fleet is healthy", fleet.healthy, timeout_s=90, interval_s=1)
    finally:
        on_again()
    present = set(sql(fleet, "SELECT key FROM drill_transactions").split())
    print(f"transactions: planned {dict(planned.counts())}, without a pause {dict(bare.counts())}")
    print(f"requests without a pause: {load.verdict}")
    assert planned.counts()["ok"] == planned.counts()["invoke"] > 4
    assert bare.counts()["unknown"] > 0, "nothing was cut in three switchovers"
    assert lost(planned, present) == lost(bare, present) == [] and load.stored == Stored()


@pytest.mark.long
def test_without_the_watcher_a_lost_host_costs_more(healthy: Fleet, tmp_path: Path) -> None:
    """Patroni alone waits for the lease of a leader that fell silent."""
    data = healthy.groups["data"]
    on_again = on(lambda _: data, "systemctl stop arches-lease-watcher", "systemctl start arches-lease-watcher")(
        healthy
    )
    gone = leader(healthy)
    try:
        with Load(healthy, "control-no-watcher", tmp_path, "faults") as load:
            healthy.machines("killed", gone)
            wait_for("another one leads", lambda: leads(healthy, "postgres") not in (None, gone), timeout_s=90)
            load.steady(10)
    finally:
        healthy.machines("present", gone)
        on_again()
    assert load.verdict.write_gap_s > 10, f"the watcher makes no difference: {load.verdict}"
    assert load.stored == Stored()


@pytest.mark.long
def test_without_replicas_to_wait_for_redis_loses_writes(healthy: Fleet) -> None:
    """It acknowledges what it alone has, when it may."""
    gone = leader(healthy, "redis")
    others = [host for host in healthy.groups["data"] if host != gone]
    (_, before) = redis(healthy, gone, "CONFIG GET min-replicas-to-write")
    assert int(before) > 0
    try:
        redis(healthy, gone, "CONFIG SET min-replicas-to-write 0")
        for host in others:
            healthy.ssh(host, drop("input", "6379", "sport"))
        answers = redis(healthy, gone, *(f"SET drill:{number} x EX 600" for number in range(100)))
        healthy.machines("killed", gone)
        for host in others:
            healthy.ssh(host, CUT)
        wait_for("another one leads", lambda: leads(healthy, "redis") not in (None, gone), timeout_s=90, interval_s=1)
        (there,) = redis(healthy, leader(healthy, "redis"), f"EXISTS {' '.join(f'drill:{n}' for n in range(100))}")
    finally:
        healthy.machines("present", gone)
        wait_for("the fleet is healthy", healthy.healthy, timeout_s=90, interval_s=1)
        redis(healthy, gone, f"CONFIG SET min-replicas-to-write {before}")
    lost = answers.count("OK") - int(there)
    print(f"Redis without replicas to wait for: {answers.count('OK')} acknowledged, {lost} lost")
    assert lost > 0
