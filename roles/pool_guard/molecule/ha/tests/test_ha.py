"""A writer on an API host's pool, while the leader's host is lost, freezes, is cut off or stops; REPEATS times each.

The tests follow one another, each leaves a whole cluster. No acknowledged write is ever lost.
"""

import asyncio
import json
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from lib.history import History, Outcome, WriteLoad, lost
from lib.scenario import machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://api1"]
NAMES = ("pg1", "pg2", "pg3")
SCENARIO = Path(__file__).parents[1]
REPEATS = range(int(os.environ.get("REPEATS", "1")))
WRITERS = 8
# What a lost host may cost: seconds without a write, and requests that fail.
GAP_S, FAILURES = 10.0, 30
# What a leader is made of.
UNITS = "etcd patroni arches-lease-watcher"


def address(name: str) -> str:
    """A machine's address."""
    return str(machine(name).backend.get_variables()["ansible_host"])


def members(asked: str) -> dict[str, tuple[str, str]]:
    """Role and state of every member by one host's patronictl."""
    shown = machine(asked).run("timeout 10 patronictl list --format json")
    return {m["Member"]: (m["Role"], m["State"]) for m in json.loads(shown.stdout or "[]")}


def leader(asked: str = "pg2") -> str:
    """Name of the leader, empty without one."""
    return next((name for name, role in members(asked).items() if role == ("Leader", "running")), "")


def whole() -> bool:
    """Whether one leads and both others count as synchronous standbys."""
    said = sorted(members("pg1").values())
    return said == [("Leader", "running"), ("Quorum Standby", "streaming"), ("Quorum Standby", "streaming")]


def lets_in(name: str) -> bool:
    """Whether a machine that was restarted is there."""
    try:
        return bool(machine(name).run("true").succeeded)
    except RuntimeError:
        return False


class Pool:
    """A client of the pool on the API host, by way of ssh; one connection for each thread."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.local = threading.local()

    async def connect(self) -> asyncpg.Connection:
        """A connection to the pool."""
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="app", password="app-secret", database="arches", timeout=60
        )

    def write(self, key: str) -> tuple[Outcome, str | None]:
        """Insert a key. Refused or nothing sent: fail; sent without an answer: unknown; both with the reason."""
        loop = self.local.__dict__.setdefault("loop", asyncio.new_event_loop())
        try:
            if getattr(self.local, "connection", None) is None:
                self.local.connection = loop.run_until_complete(self.connect())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return "fail", repr(error)
        try:
            insert = self.local.connection.execute("INSERT INTO writes VALUES ($1)", key)
            loop.run_until_complete(asyncio.wait_for(insert, 60))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self.local.connection.terminate()
            self.local.connection = None
            return "unknown", repr(error)
        return "ok", key

    def rows(self) -> set[str]:
        """The keys that are there."""

        async def work() -> set[str]:
            connection = await self.connect()
            try:
                return {row["key"] for row in await connection.fetch("SELECT key FROM writes")}
            finally:
                await connection.close()

        try:
            return asyncio.run(work())
        except asyncpg.PostgresError as error:
            raise OSError(str(error)) from error


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """The pool of api1 on a port of this computer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/state/ssh"
    forward = subprocess.Popen(
        ["ssh", "-F", "none", "-i", f"{keys}/id_ed25519", "-o", f"UserKnownHostsFile={keys}/known_hosts", "-o",
         "ExitOnForwardFailure=yes", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:6432", f"ops@{address('api1')}"],
    )  # fmt: skip
    try:
        wait_for("the pool is reached", lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True, 30)
        yield Pool(port)
    finally:
        forward.terminate()
        forward.wait(10)


class Load:
    """A running write load and what it saw of one fault."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.began = time.monotonic()

    def goes_on(self) -> None:
        """Wait until writes are acknowledged again."""
        now = time.monotonic()
        wait_for(
            "writes go on", lambda: any(e.event == "ok" and e.at > now for e in reversed(self.history.entries)), 60
        )

    def report(self, what: str) -> tuple[float, int]:
        """Longest time without an acknowledged write, and how many failed, since the fault began."""
        gap = self.history.longest_gap_s(self.began, time.monotonic())
        counts = self.history.counts()
        reasons = Counter(e.value for e in self.history.entries if e.event in ("fail", "unknown"))
        guard = machine("api1").run("journalctl -u arches-pool-guard -o cat -n 3 --no-pager").stdout.splitlines()
        print(f"\n{what}: gap {gap:.1f} s, {counts['ok']} acknowledged, failed: {dict(reasons)}\n  guard: {guard}")
        return gap, reasons.total()


@contextmanager
def load(pool: Pool, path: Path) -> Iterator[Load]:
    """A write load, and the judgement that every acknowledged write is there afterwards."""
    wait_for("a whole cluster", whole, 180, 1)
    on_leader = machine(leader())
    on_leader.check_output(
        "psql -U postgres -XAtq -v ON_ERROR_STOP=1 arches -c 'CREATE TABLE IF NOT EXISTS writes (key text)' "
        "-c 'GRANT ALL ON writes TO app' -c 'TRUNCATE writes'"
    )
    history = History(path)
    with WriteLoad(history, pool.write, WRITERS):
        wait_for("the load runs", lambda: history.counts()["ok"] >= 100, 60)
        yield Load(history)
        settled = history.counts()["ok"]
        wait_for("writes go on", lambda: history.counts()["ok"] >= settled + 100, 90)
    rows: set[str] = set()
    wait_for("the rows are read", lambda: rows.update(pool.rows()) or rows, 60)
    assert lost(history, rows) == []


def watchers(but: str, since: float) -> str:
    """What the other members' watchers have said since a moment (of the wall clock)."""
    words = f"journalctl -u arches-lease-watcher -o cat --no-pager --since @{since}"
    return "".join(machine(name).check_output(words) for name in NAMES if name != but)


def test_one_leads_and_two_follow() -> None:
    wait_for("a whole cluster", whole, 120)


def lose(name: str) -> None:
    play(SCENARIO / "machine.yml", {"machine": name, "state": "killed"})


def freeze(name: str) -> None:
    machine(name).check_output(f"systemctl kill --kill-whom=all -s STOP {UNITS}")


def thaw(name: str) -> None:
    machine(name).check_output(f"systemctl kill --kill-whom=all -s CONT {UNITS}")


def cut(name: str) -> None:
    """From the other members; the API host still reaches it."""
    peers = ", ".join(address(other) for other in NAMES if other != name)
    machine(name).check_output(
        f"nft 'table inet cut {{ chain in {{ type filter hook input priority -10; ip saddr {{ {peers} }} drop; }}; "
        f"chain out {{ type filter hook output priority -10; ip daddr {{ {peers} }} drop; }}; }}'"
    )


def heal(name: str) -> None:
    machine(name).check_output("nft delete table inet cut")


def bring_back(name: str) -> None:
    play(SCENARIO / "machine.yml", {"machine": name, "state": "present"})


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize(
    ("fault", "repair", "gap_s"),
    [
        pytest.param(lose, bring_back, GAP_S, id="lost"),
        pytest.param(freeze, thaw, GAP_S, id="frozen"),
        # It still answers the API host, and Patroni takes its time to give up there.
        pytest.param(cut, heal, 3 * GAP_S, id="cut"),
    ],
)
def test_the_leaders_host_fails(
    pool: Pool, tmp_path: Path, fault: Callable[[str], None], repair: Callable[[str], None], gap_s: float, repeat: int
) -> None:
    wait_for("a whole cluster", whole, 180, 1)
    old = leader()
    asked = next(name for name in NAMES if name != old)
    with load(pool, tmp_path / "history") as running:
        started, running.began = time.time(), time.monotonic()
        fault(old)
        wait_for("another leads", lambda: leader(asked) not in ("", old), 60)
        running.goes_on()
        gap, failed = running.report(f"{fault.__name__} {repeat} ({old})")
        told = watchers(old, started)
        # Who was away must not take anything back when it returns.
        repair(old)
        wait_for("a whole cluster", whole, 180, 1)
    assert f"{old} is silent for all and no WAL comes from it: its lease is ended" in told
    assert gap <= gap_s
    assert failed <= FAILURES


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("command", ["stop patroni", "reboot"])
def test_a_leader_that_is_stopped_costs_nobody_a_request(pool: Pool, tmp_path: Path, command: str, repeat: int) -> None:
    wait_for("a whole cluster", whole, 180, 1)
    old = leader()
    asked = next(name for name in NAMES if name != old)
    with load(pool, tmp_path / "history") as running:
        running.began = time.monotonic()
        # From a unit of its own: the connection ends with the machine.
        machine(old).check_output(f"systemd-run --collect --on-active=100ms systemctl {command}")
        wait_for("another leads", lambda: leader(asked) not in ("", old), 60)
        running.goes_on()
        gap, failed = running.report(f"{command} {repeat} ({old})")
        wait_for("it lets people in", lambda: lets_in(old), 60)
        machine(old).check_output("systemctl start patroni")
        wait_for("a whole cluster", whole, 180, 1)
    assert gap <= GAP_S
    assert failed == 0
