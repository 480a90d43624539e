"""A single member: who may do what, over which connection, and that it comes back by itself."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.scenario import play
from lib.waiting import wait_for

TLS = "/etc/arches/tls"
REFUSED = "permission denied"


@pytest.fixture
def address(host):
    return host.interface("host0").addresses[0]


@pytest.fixture
def rest(host, address):
    """Ask Patroni: status and decoded body."""

    def ask(path: str, options: str = ""):
        answer = host.run(
            "python3 - <<'E'\n"
            "import json, ssl, urllib.request, urllib.error\n"
            f"context = ssl.create_default_context(cafile='{TLS}/ca.crt')\n"
            f"request = urllib.request.Request('https://{address}:8008{path}', {options or 'None'})\n"
            "try:\n"
            "    answer = urllib.request.urlopen(request, context=context, timeout=5)\n"
            "except urllib.error.HTTPError as error:\n"
            "    answer = error\n"
            "print(answer.status); print(answer.read().decode())\n"
            "E"
        )
        status, _, body = answer.stdout.partition("\n")
        return int(status or 0), body

    return ask


@pytest.fixture
def sql(host, address):
    """Run a statement as a role over TLS, as a client on another host would."""

    def run(role: str, statement: str, mode: str = "verify-full", database: str = "arches"):
        where = f"host={address} dbname={database} user={role} sslmode={mode} sslrootcert={TLS}/ca.crt"
        return host.run(f"PGPASSWORD={role}-secret psql -XAtq -v ON_ERROR_STOP=1 '{where}' <<'E'\n{statement}\nE")

    return run


@pytest.fixture
def table(sql):
    """A table as a migration makes it."""
    assert sql(
        "migrator", "CREATE TABLE IF NOT EXISTS notes (id bigserial PRIMARY KEY, text text, v halfvec(3))"
    ).succeeded
    yield "notes"
    assert sql("migrator", "DROP TABLE notes").succeeded


def test_what_a_migration_makes_belongs_to_the_owner(sql, table):
    owner = sql("migrator", f"SELECT tableowner FROM pg_tables WHERE tablename = '{table}'")
    assert owner.stdout.strip() == "owner"


def test_the_application_reads_and_writes_rows(sql, table):
    done = sql(
        "app",
        f"INSERT INTO {table} (text, v) VALUES ('one', '[1,2,3]') RETURNING id;"
        f"UPDATE {table} SET text = 'two'; SELECT text FROM {table}; DELETE FROM {table};",
    )
    assert done.succeeded, done.stderr
    assert done.stdout.split() == ["1", "two"]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE own (id int)",
        "ALTER TABLE notes ADD COLUMN more text",
        "DROP TABLE notes",
        "TRUNCATE notes",
        "CREATE SCHEMA own",
        "CREATE TEMPORARY TABLE own (id int)",
        "CREATE ROLE friend",
        "SET ROLE owner",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_the_application_does_nothing_else(sql, table, statement):
    refused = sql("app", statement)
    assert refused.failed
    assert REFUSED in refused.stderr or "must be owner" in refused.stderr


def test_monitoring_sees_figures_but_no_rows(sql, table):
    assert sql("monitor", "SELECT count(*) FROM pg_stat_activity").succeeded
    assert REFUSED in sql("monitor", f"SELECT * FROM {table}").stderr


def test_vectors_are_understood(sql, table):
    near = sql("app", "SELECT round(('[1,0]'::halfvec <=> '[1,1]'::halfvec)::numeric, 3)")
    assert near.stdout.strip() == "0.293"


def test_nothing_travels_in_the_clear(sql):
    refused = sql("app", "SELECT 1", mode="disable")
    assert "no encryption" in refused.stderr


def test_a_wrong_password_is_refused(sql, host, address):
    where = f"host={address} dbname=arches user=app sslmode=verify-full sslrootcert={TLS}/ca.crt"
    assert "authentication failed" in host.run(f"PGPASSWORD=wrong psql '{where}' -c 'SELECT 1'").stderr


@pytest.mark.parametrize("role", ["postgres", "owner", "replication"])
def test_powerful_roles_do_not_log_in_from_afar(sql, role):
    assert "pg_hba.conf" in sql(role, "SELECT 1", database="arches").stderr


def test_timeouts_belong_to_the_roles(sql):
    assert sql("app", "SHOW statement_timeout").stdout.strip() == "30s"
    assert sql("migrator", "SHOW lock_timeout").stdout.strip() == "4s"


def test_pages_carry_checksums(sql):
    assert sql("monitor", "SHOW data_checksums").stdout.strip() == "on"


def test_patroni_says_who_leads(rest):
    status, body = rest("/primary")
    assert status == 200
    assert json.loads(body)["role"] == "primary"


def test_patroni_changes_nothing_for_strangers(rest):
    assert rest("/restart", "b'{}'")[0] == 401


def test_patronictl_works_for_root(host):
    members = json.loads(host.check_output("patronictl list --format json"))
    assert [(m["Role"], m["State"]) for m in members] == [("Leader", "running")]


def test_debian_made_no_cluster_of_its_own(host):
    assert host.check_output("pg_lsclusters --no-header") == ""


def postmaster(host) -> str:
    return host.check_output("head -1 /var/lib/postgresql/17/arches/postmaster.pid")


def test_comes_back_after_a_kill_with_every_committed_row(host, sql, rest, table):
    assert sql("app", f"INSERT INTO {table} (text) VALUES ('committed')").succeeded
    killed = postmaster(host)
    host.run_expect([0], f"kill -KILL {killed}")
    wait_for("Postgres serves again", lambda: sql("app", f"SELECT text FROM {table}").stdout.strip() == "committed", 60)
    assert postmaster(host) != killed
    # It is read before it is led: only a leader lets the table go.
    wait_for("it leads", lambda: rest("/primary")[0] == 200, 60)


def test_postgres_outlives_a_killed_patroni(host, sql, rest):
    before, patroni = postmaster(host), host.service("patroni").systemd_properties["MainPID"]
    host.run_expect([0], "systemctl kill --kill-whom=main -s KILL patroni")
    wait_for(
        "another Patroni runs", lambda: host.service("patroni").systemd_properties["MainPID"] not in ("0", patroni), 30
    )
    wait_for("it leads", lambda: rest("/primary")[0] == 200, 60)
    assert postmaster(host) == before


def test_a_stop_lets_the_application_finish_but_does_not_wait_for_ever(host, address, rest):
    """The last test: it leaves other settings."""
    play(Path(__file__).parents[1] / "converge.yml", {"postgres_before_stop_s": 8})

    def work(seconds: int) -> str:
        where = (
            f"host={address} dbname=arches user=app sslmode=verify-full sslrootcert={TLS}/ca.crt application_name=api"
        )
        return host.run(
            f"PGPASSWORD=app-secret psql -XAtq '{where}' -c \"SELECT pg_sleep({seconds}), 'finished'\""
        ).stdout

    running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'"
    for seconds, finishes in ((3, True), (60, False)):
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(work, seconds)
            wait_for("it runs", lambda: host.check_output(f'psql -U postgres -XAtc "{running}"') == "1", 20)
            began = time.monotonic()
            host.check_output("systemctl stop patroni")
            took = time.monotonic() - began
            assert ("finished" in answer.result(timeout=30)) == finishes
        assert took < 30
        assert finishes or took >= 8
        host.check_output("systemctl start patroni")
        wait_for("it leads again", lambda: rest("/primary")[0] == 200, 60)
