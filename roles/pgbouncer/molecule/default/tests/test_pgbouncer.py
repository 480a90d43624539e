"""Postgres through PgBouncer: who gets in, what a shared connection keeps, how soon a killed pooler is back."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

SOCKET = "/run/postgresql"
POOL = Path(__file__).parents[1] / "pool.yml"
LEADER = {"host": "postgres", "port": 5432, "user": "app", "password": "app-secret", "ca": "/etc/arches/tls/ca.crt"}


def psql(
    host: Host, sql: str, *, user: str = "app", password: str = "app-secret", at: str = SOCKET, db: str = "arches"
) -> str:
    """Output of one statement through PgBouncer, errors included."""
    where = f"host={at} port=6432 dbname={db} user={user} connect_timeout=10"
    result = host.run("PGPASSWORD=%s timeout 30 psql -XAtq %s -c %s", password, where, sql)
    return str(result.stdout + result.stderr).strip()


def console(host: Host, command: str) -> str:
    """Output of a command on PgBouncer's console."""
    return psql(host, command, user="pgbouncer_admin", password="admin-secret", db="pgbouncer")


def pid(host: Host) -> str:
    """PgBouncer's main process."""
    return str(host.check_output("systemctl show -p MainPID --value pgbouncer"))


def test_sql_by_socket_and_by_loopback(host: Host) -> None:
    assert psql(host, "SELECT current_user") == "app"
    assert psql(host, "SELECT current_user", at="127.0.0.1") == "app"


def test_listens_on_loopback_only(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:6432").is_listening
    assert not host.socket("tcp://0.0.0.0:6432").is_listening
    assert not host.socket("tcp://:::6432").is_listening


def test_server_connection_is_tls(host: Host) -> None:
    assert psql(host, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == "t"


def test_wrong_password_is_refused(host: Host) -> None:
    assert "SASL authentication failed" in psql(host, "SELECT 1", password="wrong")
    console_login = psql(host, "SHOW POOLS", user="pgbouncer_admin", password="wrong", db="pgbouncer")
    assert "SASL authentication failed" in console_login


def test_server_with_another_name_is_refused(host: Host) -> None:
    """The same server, the same certificate, but asked for by a name that it does not carry."""
    assert "FATAL" in psql(host, "SELECT 1", db="stranger")
    assert "not present in server certificate" in host.check_output("journalctl -u pgbouncer -o cat --no-pager")


def test_prepared_statements_survive_shared_connections(host: Host) -> None:
    """Eight clients with named prepared statements share two server connections."""
    host.check_output("echo 'SELECT :client_id + 1;' > /tmp/script.sql")
    bench = f"pgbench -h {SOCKET} -p 6432 -U app -n -M prepared -c 8 -j 2 -t 200 -f /tmp/script.sql arches"
    result = host.run(f"PGPASSWORD=app-secret PATH=/usr/lib/postgresql/17/bin:$PATH timeout 60 {bench}")
    assert "number of transactions actually processed: 1600/1600" in result.stdout, result.stdout + result.stderr
    backends = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
    assert int(host.check_output("runuser -u postgres -- psql -XAtc %s", backends)) <= 2


def test_who_may_look_may_do_nothing_else(host: Host) -> None:
    look = {"user": "stats", "password": "stats-secret", "db": "pgbouncer"}
    assert "pgbouncer|" in psql(host, "SHOW POOLS", **look)
    assert "admin access needed" in psql(host, "PAUSE arches", **look)
    assert "FATAL" in psql(host, "SELECT 1", user="stats", password="stats-secret")


def test_killed_pooler_is_back_within_a_second(host: Host) -> None:
    before = pid(host)
    host.check_output("kill -9 %s", before)
    wait_for("the pooler serves again", lambda: psql(host, "SELECT 1") == "1", timeout_s=20)
    assert pid(host) != before
    times = host.check_output("systemctl show -p ActiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic pgbouncer")
    left, entered = (int(line.partition("=")[2]) for line in sorted(times.splitlines(), reverse=True))
    assert 0 < entered - left < 1_000_000  # microseconds


def test_pools_can_be_paused_and_resumed(host: Host) -> None:
    assert console(host, "PAUSE arches") == ""
    try:
        assert "query_wait_timeout" in psql(host, "SELECT 1")
    finally:
        assert console(host, "RESUME arches") == ""
    assert psql(host, "SELECT 1") == "1"
    assert console(host, "RECONNECT arches") == ""
    assert psql(host, "SELECT 1") == "1"


def tell(**pool: Any) -> None:
    """Run the module that recoveries use."""
    play(POOL, {"pool": pool})


def patience(host: Host) -> str:
    """Seconds that a query waits in the pool at most."""
    line = next(line for line in console(host, "SHOW CONFIG").splitlines() if line.startswith("query_wait_timeout|"))
    return line.split("|")[1]


@contextmanager
def waiting_query(host: Host) -> Iterator[Any]:
    """A query that was sent and is not answered; its answer comes by `.result()`."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(psql, host, "SELECT 42")
        wait_for("the query waits", lambda: "|1|" in clients_waiting(host), timeout_s=20)
        assert not answer.done()
        yield answer


def clients_waiting(host: Host) -> str:
    """`|n|` with the number of clients that wait in the pool."""
    line = next((line for line in console(host, "SHOW POOLS").splitlines() if line.startswith("arches|app|")), "|||0")
    return f"|{line.split('|')[3]}|"


def test_a_held_query_is_answered_when_a_new_leader_writes(host: Host) -> None:
    tell(state="paused")
    with waiting_query(host) as answer:
        assert patience(host) == "30"
        tell(state="bridged", leader=LEADER | {"not": "192.0.2.31"})
        assert answer.result(timeout=20) == "42"
    assert patience(host) == "5"
    assert "arches-pool" not in host.check_output("systemctl list-timers --all")


def test_a_pool_goes_on_where_nobody_new_leads(host: Host) -> None:
    tell(state="paused", at_most_s=60)
    with waiting_query(host) as answer:
        with pytest.raises(AssertionError, match=r"No new leader acknowledged a write within 2 s .* still leads"):
            tell(state="bridged", at_most_s=7, leader=LEADER | {"not": "127.0.0.1"})
        assert answer.result(timeout=20) == "42"


def test_a_pool_that_nobody_comes_back_to_goes_on_by_itself(host: Host) -> None:
    tell(state="paused", at_most_s=4)
    with waiting_query(host) as answer:
        assert answer.result(timeout=20) == "42"
    wait_for("the patience is as configured", lambda: patience(host) == "5", timeout_s=10)


def test_a_long_transaction_keeps_a_pool_from_resting(host: Host) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(psql, host, "SELECT pg_sleep(12)")
        wait_for(
            "it runs",
            lambda: "1" in psql(host, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(12)'"),
            timeout_s=10,
        )
        began = time.monotonic()
        with pytest.raises(AssertionError, match=r"did not come to rest within 2\.0 s .*; it goes on"):
            tell(state="paused")
        assert psql(host, "SELECT 1") == "1"
        assert not slow.done(), f"the transaction was over after {time.monotonic() - began:.0f} s already"
        slow.result(timeout=20)


def test_a_bridge_does_not_wait_for_a_long_transaction(host: Host) -> None:
    slow = "FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(psql, host, "SELECT pg_sleep(600)")
        wait_for("it runs", lambda: psql(host, f"SELECT count(*) {slow}") == "1", timeout_s=10)
        tell(state="bridged", within_s=0.5, leader=LEADER | {"not": "192.0.2.31"})
        assert psql(host, f"SELECT pg_cancel_backend(pid) {slow}") == "t"
        answer.result(timeout=20)
    assert patience(host) == "5"


def test_to_go_on_twice_is_fine(host: Host) -> None:
    tell(state="resumed")
    tell(state="resumed")
    assert psql(host, "SELECT 1") == "1"


def test_returning_server_is_used_soon(host: Host) -> None:
    """With Debian's server_login_retry this takes 15 s."""
    host.check_output("systemctl stop postgresql@17-main")
    assert "server_login" in psql(host, "SELECT 1") or "connect" in psql(host, "SELECT 1")
    host.check_output("systemctl start postgresql@17-main")
    wait_for("the pool serves again", lambda: psql(host, "SELECT 1") == "1", timeout_s=10)


def test_settings_are_reloaded_not_restarted(host: Host) -> None:
    before = pid(host)
    play(variables={"pgbouncer_pool_size": 1, "pgbouncer_users": [{"name": "app", "password": "other"}]})
    assert "default_pool_size|1|" in console(host, "SHOW CONFIG")
    assert "SASL authentication failed" in psql(host, "SELECT 1")
    assert pid(host) == before
    assert not host.file("/var/lib/arches/pending/pgbouncer").exists


def test_port_needs_a_restart(host: Host) -> None:
    """The last test: it leaves the pooler on another port."""
    before = pid(host)
    play(variables={"pgbouncer_port": 6433})
    assert pid(host) != before
    assert host.socket("tcp://127.0.0.1:6433").is_listening
