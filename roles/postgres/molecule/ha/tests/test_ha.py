"""Three members. The tests follow one another, each leaves a whole cluster; no acknowledged write is ever lost."""

import asyncio
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from lib.history import History, Outcome, WriteLoad, lost
from lib.scenario import machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://pg1"]
NAMES = ("pg1", "pg2", "pg3")
SCENARIO = Path(__file__).parents[1]
CONVERGE = SCENARIO.parent / "default/converge.yml"


def address(name: str) -> str:
    """A machine's address."""
    return str(machine(name).backend.get_variables()["ansible_host"])


class Database:
    """A client outside the cluster that finds the leader by itself; one connection for each thread."""

    def __init__(self) -> None:
        self.addresses = [address(name) for name in NAMES]
        self.context = ssl.create_default_context(cafile=f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ca.crt")
        self.local = threading.local()

    async def connect(self, role: str) -> asyncpg.Connection:
        """A connection to whoever leads."""
        return await asyncpg.connect(
            host=self.addresses, port=[5432] * 3, user=role, password=f"{role}-secret", database="arches",
            ssl=self.context, target_session_attrs="primary", timeout=10,  # a silent host comes before the next
        )  # fmt: skip

    def run(self, role: str, statement: str) -> list[asyncpg.Record]:
        """One statement on a connection of its own."""

        async def work() -> list[asyncpg.Record]:
            connection = await self.connect(role)
            try:
                return list(await connection.fetch(statement))
            finally:
                await connection.close()

        return asyncio.run(work())

    def write(self, key: str) -> tuple[Outcome, str | None]:
        """Insert a key. Nothing was sent: fail; sent without an answer: unknown."""
        loop = self.local.__dict__.setdefault("loop", asyncio.new_event_loop())
        try:
            if getattr(self.local, "connection", None) is None:
                self.local.connection = loop.run_until_complete(self.connect("app"))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return "fail", None
        try:
            insert = self.local.connection.execute("INSERT INTO writes VALUES ($1)", key)
            loop.run_until_complete(asyncio.wait_for(insert, 30))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.local.connection.terminate()
            self.local.connection = None
            return "unknown", None
        return "ok", key


def members(asked: str) -> dict[str, tuple[str, str]]:
    """Role and state of every member by one host's patronictl."""
    shown = machine(asked).run("patronictl list --format json")
    return {m["Member"]: (m["Role"], m["State"]) for m in json.loads(shown.stdout or "[]")}


def leader(asked: str = "pg2") -> str:
    """Name of the leader, empty without one."""
    return next((name for name, role in members(asked).items() if role == ("Leader", "running")), "")


def whole() -> bool:
    """Whether one leads and both others count as synchronous standbys."""
    said = sorted(members(next(name for name in NAMES if machine(name).run("true").rc == 0)).values())
    return said == [("Leader", "running"), ("Quorum Standby", "streaming"), ("Quorum Standby", "streaming")]


def changes(*options: str, **variables: object) -> dict[str, int]:
    """Apply both roles; the number of changes of each host."""
    return play(CONVERGE, variables, *options)


@contextmanager
def load(path: Path) -> Iterator[History]:
    """A write load, and the judgement that every acknowledged write is there afterwards."""
    database, history = Database(), History(path)
    database.run("migrator", "CREATE TABLE IF NOT EXISTS writes (key text)")
    database.run("migrator", "TRUNCATE writes")
    with WriteLoad(history, database.write):
        wait_for("the load runs", lambda: history.counts()["ok"] >= 50, 60)
        yield history
        settled = history.counts()["ok"]
        wait_for("writes go on", lambda: history.counts()["ok"] >= settled + 50, 90)
    rows: set[str] = set()
    wait_for(
        "the rows are read", lambda: rows.update(r["key"] for r in database.run("app", "TABLE writes")) or rows, 60
    )
    assert lost(history, rows) == []


def test_one_leads_and_two_follow() -> None:
    wait_for("a whole cluster", whole, 60)


def test_silent_loss_of_the_leader(tmp_path: Path) -> None:
    old = leader()
    asked = next(name for name in NAMES if name != old)
    with load(tmp_path / "history") as history:
        began = time.monotonic()
        play(SCENARIO / "machine.yml", {"machine": old, "state": "killed"})
        wait_for("another leads", lambda: leader(asked) not in ("", old), 60)
    print(f"longest gap {history.longest_gap_s(began, time.monotonic()):.1f} s, {dict(history.counts())}")


def test_returning_leader_follows_and_a_run_changes_nothing() -> None:
    for name in NAMES:
        play(SCENARIO / "machine.yml", {"machine": name, "state": "present"})
    wait_for("a whole cluster", whole, 120)
    before = leader()
    assert set(changes("--check").values()) == {0}
    assert set(changes().values()) == {0}
    assert leader() == before


def test_recreated_host_rejoins_with_one_run(tmp_path: Path) -> None:
    new = next(name for name in NAMES if name != leader())
    with load(tmp_path / "history"):
        play(SCENARIO / "machine.yml", {"machine": new, "state": "absent"})
        play(SCENARIO / "machine.yml", {"machine": new, "state": "present"})
        play(SCENARIO.parents[3] / "molecule/prepare.yml", {}, "--limit", new)
        done = changes()
        assert {name for name, count in done.items() if count} == {new}
    wait_for("a whole cluster", whole, 120)
    assert set(changes().values()) == {0}


def test_restarts_roll_and_the_leader_hands_over(tmp_path: Path) -> None:
    old = leader()
    started = {name: machine(name).check_output("systemctl show -p MainPID --value patroni etcd") for name in NAMES}
    changed = {"postgres_parameters": {"max_worker_processes": 9}, "etcd_heartbeat_ms": 300}
    with load(tmp_path / "history") as history:
        changes(**changed)
        began = time.monotonic()
        for name in (*(name for name in NAMES if name != old), old):
            play(SCENARIO / "restart.yml", changed, "--limit", name)
        ended = time.monotonic()
    print(f"longest gap {history.longest_gap_s(began, ended):.1f} s, {dict(history.counts())}")
    wait_for("a whole cluster", whole, 60)
    assert leader() != old
    for name in NAMES:
        assert machine(name).check_output("systemctl show -p MainPID --value patroni etcd") != started[name]
        assert machine(name).check_output("psql -U postgres -Atc 'SHOW max_worker_processes'") == "9"
        assert machine(name).run("ls /var/lib/arches/pending").stdout == ""
    assert set(changes(**changed).values()) == {0}
