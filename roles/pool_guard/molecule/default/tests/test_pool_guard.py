"""A pool whose leader comes and goes: what waits, what goes on, and that nothing stays paused."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

SCENARIO = Path(__file__).parents[1]
CONVERGE = SCENARIO / "converge.yml"
# The module that planned switchovers use.
PLAN = SCENARIO.parents[2] / "pgbouncer/molecule/default/pool.yml"
GUARD = "arches-pool-guard"
PID = f"systemctl show -p MainPID --value {GUARD}"
MARK = f"/run/{GUARD}/paused"
# An alarm takes a second and a half at most; the rest is for a busy computer.
SOON_S = 15.0


def psql(host: Host, sql: str, *, user: str = "app", password: str = "app-secret", db: str = "arches") -> str:
    """Output of one statement by way of the pool, errors included."""
    where = f"host=/run/postgresql port=6432 dbname={db} user={user} connect_timeout=60"
    result = host.run("PGPASSWORD=%s timeout 60 psql -XAtq %s -c %s", password, where, sql)
    return str(result.stdout + result.stderr).strip()


def console(host: Host, command: str) -> str:
    """Output of a command on PgBouncer's console."""
    return psql(host, command, user="pgbouncer_admin", password="admin-secret", db="pgbouncer")


def paused(host: Host) -> bool:
    """Whether the pool is."""
    row = next(line for line in console(host, "SHOW DATABASES").splitlines() if line.startswith("arches|"))
    return row.split("|")[-2] == "1"


def patience(host: Host) -> str:
    """Seconds that a query waits in the pool at most."""
    line = next(line for line in console(host, "SHOW CONFIG").splitlines() if line.startswith("query_wait_timeout|"))
    return line.split("|")[1]


def say(host: Host, pool1: str, localhost: str) -> None:
    """What the members' Patroni says from now on: leads, follows, hangs."""
    host.check_output(f"echo {pool1} >/run/member-pool1; echo {localhost} >/run/member-localhost")


def said(host: Host) -> list[str]:
    """All that the guard has said in this test."""
    return str(host.check_output(f"journalctl -u {GUARD} -o cat --no-pager --since @$(cat /run/began)")).splitlines()


@pytest.fixture(autouse=True)
def pool1_leads(host: Host) -> Iterator[None]:
    """Every test begins and ends with pool1 as the leader and queries that go on, and the guard knows."""
    host.check_output("date +%s.%N >/run/began")
    yield
    say(host, "leads", "follows")
    wait_for("all is as before", lambda: calm(host) and psql(host, "SELECT 1") == "1" and calm(host), 60)


def calm(host: Host) -> bool:
    """Whether nothing waits and nothing is left of a pause."""
    return not paused(host) and not host.file(MARK).exists and patience(host) == "5"


@contextmanager
def waiting_query(host: Host) -> Iterator[Future[str]]:
    """A query that was sent while the pool waits."""
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(psql, host, "SELECT 42")
        wait_for("it waits", lambda: "|1|" in waiting(host), SOON_S)
        assert not answer.done()
        yield answer


def waiting(host: Host) -> str:
    """`|n|` with the number of clients that wait in the pool."""
    line = next((line for line in console(host, "SHOW POOLS").splitlines() if line.startswith("arches|app|")), "|||0")
    return f"|{line.split('|')[3]}|"


def lose(host: Host, pool1: str = "follows") -> None:
    """Nobody leads, and the guard has noticed."""
    say(host, pool1, "follows")
    wait_for("queries wait", lambda: paused(host), SOON_S)


def test_it_runs_for_ever_with_few_rights(host: Host) -> None:
    assert host.service(GUARD).is_enabled
    settings = host.file("/etc/arches/pool-guard.json")
    assert (settings.user, settings.group, settings.mode) == ("root", "postgres", 0o640)
    assert host.check_output(f"ps -o user= -p $({PID})") == "postgres"
    assert host.check_output(f"grep CapBnd /proc/$({PID})/status").split()[1] == "0" * 16


@pytest.mark.parametrize("leader", ["follows", "hangs"])
def test_queries_wait_until_another_member_leads(host: Host, leader: str) -> None:
    lose(host, leader)
    assert patience(host) == "30"
    with waiting_query(host) as answer:
        say(host, leader, "leads")
        assert answer.result(timeout=20) == "42"
    assert any(line.startswith("localhost has acknowledged a write: queries go on") for line in said(host))


def test_a_leader_that_does_not_write_is_none(host: Host) -> None:
    host.check_output("runuser -u postgres -- psql -qc 'ALTER ROLE app NOLOGIN'")
    try:
        lose(host)
        say(host, "follows", "leads")
        wait_for("a write was tried", lambda: any("not permitted to log in" in line for line in said(host)), SOON_S)
        assert paused(host)
    finally:
        host.check_output("runuser -u postgres -- psql -qc 'ALTER ROLE app LOGIN'")
    wait_for("queries go on", lambda: not paused(host), SOON_S)


def test_when_no_member_answers_nothing_is_done(host: Host) -> None:
    say(host, "hangs", "hangs")
    wait_for("it says so", lambda: "no member answers: nothing is done" in said(host), SOON_S)
    assert not paused(host)
    assert "nobody leads: queries wait" not in said(host)


def test_a_transaction_that_takes_long_keeps_nobody_waiting_for_itself(host: Host) -> None:
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(psql, host, "SELECT pg_sleep(10), 'done'")
        wait_for("it runs", lambda: "|1|0|" in console(host, "SHOW POOLS"), SOON_S)
        # Shorter than what it takes HAProxy to cut the transaction off.
        lose(host, "hangs")
        say(host, "leads", "follows")
        wait_for("queries go on", lambda: not paused(host), SOON_S)
        assert not slow.done()
        assert "done" in slow.result(timeout=20)


def test_nobody_waits_longer_than_the_limit(host: Host) -> None:
    lose(host)
    with waiting_query(host) as answer:
        # Nobody leads, so it fails as it would without the guard.
        assert "42" not in answer.result(timeout=45)
    assert "nobody leads for too long: queries go on" in said(host)
    assert not paused(host)


def test_a_plan_is_left_alone(host: Host) -> None:
    def tell(**pool: Any) -> None:
        play(PLAN, {"pool": pool})

    tell(state="paused", at_most_s=60)
    say(host, "follows", "follows")
    wait_for("it says so", lambda: any("a plan holds the pool: nothing is done" in line for line in said(host)), SOON_S)
    assert paused(host)
    say(host, "follows", "leads")
    wait_for("it knows who leads", lambda: "localhost leads" in said(host), SOON_S)
    assert paused(host)
    tell(state="resumed")
    assert "nobody leads: queries wait" not in said(host)


def test_what_a_person_has_paused_is_left_alone(host: Host) -> None:
    assert console(host, "PAUSE arches") == ""
    try:
        say(host, "follows", "follows")
        wait_for("it says so", lambda: any("somebody has paused the pool" in line for line in said(host)), SOON_S)
        say(host, "follows", "leads")
        wait_for("it knows who leads", lambda: "localhost leads" in said(host), SOON_S)
        assert paused(host)
    finally:
        assert console(host, "RESUME arches") == ""
        assert console(host, "RELOAD") == ""


@pytest.mark.parametrize("how", ["kill -s KILL", "kill -s STOP", "stop", "restart"])
def test_a_guard_that_ends_leaves_nothing_paused(host: Host, how: str) -> None:
    lose(host)
    assert host.file(MARK).exists
    before = host.check_output(PID)
    try:
        host.check_output(f"systemctl {how} --kill-whom=main {GUARD}" if "kill" in how else f"systemctl {how} {GUARD}")
        wait_for("queries go on", lambda: not paused(host) and patience(host) == "5", 40)
        assert "the guard has ended: queries go on" in said(host)
    finally:
        host.check_output(f"systemctl start {GUARD}")
    wait_for("another runs", lambda: host.check_output(PID) not in ("0", before), SOON_S)


def test_a_killed_pool_is_guarded_again(host: Host) -> None:
    lose(host)
    host.check_output("systemctl kill -s KILL pgbouncer")
    say(host, "follows", "leads")
    wait_for("queries go on", lambda: psql(host, "SELECT 1") == "1", SOON_S)
    wait_for("the guard knows", lambda: not host.file(MARK).exists, SOON_S)
    lose(host)


def test_switched_off_it_stays_off(host: Host) -> None:
    """The last test."""
    off = {"pool_guard_enabled": False}
    assert play(CONVERGE, off) == {"pool1": 1}
    assert play(CONVERGE, off) == {"pool1": 0}
    assert not host.service(GUARD).is_running
    assert not host.service(GUARD).is_enabled
    say(host, "follows", "follows")
    wait_for("queries fail", lambda: "server_login" in psql(host, "SELECT 1"), SOON_S)
    assert not paused(host)
