#!/usr/bin/python3
"""Let queries wait in this host's pool (PgBouncer) while nobody leads Postgres, instead of failing.

    arches-pool-guard SETTINGS           # for ever
    arches-pool-guard SETTINGS resume    # lets go on what a guard that ended has left paused

Several times a second Patroni is asked who leads. When the leader says that it leads no more, another one leads, or
nobody says so in some polls, the pool is paused: new queries wait in it. They go on when a member says that it leads
and writes are acknowledged by the way that queries take (HAProxy); after a limit they go on whatever is the case, and
the pool is not paused again before a leader was seen.

Nothing is done while no member answers at all (this host is cut off, waiting would not help), and while a plan holds
the pool (`arches-pool-resume.timer`). Only what was paused here is let go on here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

# A real change that is replicated before it is acknowledged, and leaves nothing behind.
WRITE = "SELECT pg_logical_emit_message(true, 'arches', 'is this written?')"
# There as long as the timer of a planned pause is.
PLANNED = Path("/run/systemd/transient/arches-pool-resume.timer")
SOCKETS = "/run/postgresql"
# As long as HAProxy waits for an answer: what it does not give up is not given up here.
PATIENCE_S = 2.0
# So long a leader may be silent that has accepted a connection: it is busy, or hangs, and its host is not lost.
BUSY_S = 1.0
# And so long while it is new by a plan: its host has a checkpoint, its standbys and all who have waited at once. Less
# than Patroni waits for the pools when it is stopped (`postgres_before_stop_s`).
BUSY_NEW_S = 2.5
NEW_S = 60.0
# What was heard while something else took its time is old after this.
FRESH_S = 1.0
# So long an answer of the pool's console or of the leader may take.
CONSOLE_S = 2.0
# A pause takes effect at once; only a transaction can keep it from being complete, and that is not waited for.
PAUSE_S = 0.2
SLOW = "no answer in time"
# Who has waited gets a turn within this time after a pause.
DRAINED_S = 5.0
# Added to the limit, so that nobody who waits is turned away before it.
SLACK_S = 10
# In good times so many polls ask the leader alone and the next one everybody: another may lead already.
OTHERS_EVERY = 5
# After an alarm that was none, the next one takes twice as many polls; at most so many times as many, and for so long.
DOUBT = 8
DOUBT_S = 60.0


class NoAnswer(Exception):
    """Who gave no answer, and why."""


class Settings(NamedTuple):
    """What the role wrote. `members` maps names to addresses, times are in seconds."""

    members: Mapping[str, str]
    patroni_port: int
    ca: str
    interval_s: float
    connect_s: float
    answer_s: float
    polls: int
    limit_s: int
    database: str
    pool_port: int
    leader_host: str
    leader_port: int
    user: str
    password: str


def primary_status(
    address: str, port: int, connect_s: float, context: ssl.SSLContext, connected: Callable[[], None]
) -> int:
    """Status of Patroni's /primary: 200 on the leader; 0 for silence. `connected` is told of a connection."""
    connection = http.client.HTTPSConnection(address, port, context=context)
    try:
        plain = socket.create_connection((address, port), connect_s)
        connected()
        plain.settimeout(PATIENCE_S)
        connection.sock = context.wrap_socket(plain, server_hostname=address)
        connection.request("OPTIONS", "/primary")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Members:
    """Patroni on every member. A slow answer counts when it comes; until then that member is not asked again."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        self.settings = settings
        self.context = context
        self.threads = concurrent.futures.ThreadPoolExecutor(len(settings.members))
        self.asked: dict[str, concurrent.futures.Future[tuple[int, float]]] = {}
        self.connected: set[str] = set()

    def busy(self, name: str) -> bool:
        """Whether a member has accepted the connection, and has not answered yet."""
        return name in self.asked and name in self.connected

    def ask(self, names: Iterable[str]) -> tuple[str, set[str]]:
        """Who says that it leads (empty: nobody), and who said that it does not."""
        for name in names:
            if name not in self.asked:
                self.connected.discard(name)
                self.asked[name] = self.threads.submit(self._answer, name)
        denied: set[str] = set()
        who = {future: name for name, future in self.asked.items()}
        with contextlib.suppress(TimeoutError):
            for future in concurrent.futures.as_completed(who, self.settings.answer_s):
                del self.asked[who[future]]
                status, at = future.result()
                if time.monotonic() - at > FRESH_S:
                    continue
                if status == http.HTTPStatus.OK:
                    return who[future], denied
                if status:
                    denied.add(who[future])
        return "", denied

    def _answer(self, name: str) -> tuple[int, float]:
        """What a member says, and when it was heard."""
        address, port, connect_s = self.settings.members[name], self.settings.patroni_port, self.settings.connect_s
        status = primary_status(address, port, connect_s, self.context, lambda: self.connected.add(name))
        return status, time.monotonic()


def tell(console: str, command: str, seconds: float) -> list[dict[str, str]]:
    """A command to PgBouncer on its own socket, where it trusts the user it runs as; its rows. Raises NoAnswer.

    By hand, because when a leader is lost each tenth of a second counts, and psql takes longer to begin.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(seconds)
        try:
            channel.connect(console)
            with channel.makefile("rb") as stream:
                channel.sendall(packet(b"", struct.pack("!I", 196608) + b"user\0pgbouncer\0database\0pgbouncer\0\0"))
                answered(stream)
                channel.sendall(packet(b"Q", command.encode() + b"\0"))
                return answered(stream)
        except TimeoutError:
            raise NoAnswer(f"the pool: {SLOW}") from None
        except (OSError, ValueError, struct.error) as error:
            raise NoAnswer(f"the pool: {error or type(error).__name__}") from None


def packet(kind: bytes, content: bytes) -> bytes:
    """A message of PostgreSQL's protocol."""
    return kind + struct.pack("!I", len(content) + 4) + content


def answered(stream: BinaryIO) -> list[dict[str, str]]:
    """The rows that come until the server is ready again. Raises NoAnswer with what it complains about."""
    names: list[str] = []
    found = []
    complaint = ""
    while (kind := stream.read(1)) != b"Z":
        (length,) = struct.unpack("!I", stream.read(4))
        content = stream.read(length - 4)
        if kind == b"T":
            # Each name is followed by eighteen bytes about its column.
            names = [match[1].decode() for match in re.finditer(rb"([^\0]*)\0.{18}", content[2:], re.DOTALL)]
        elif kind == b"D":
            found.append(dict(zip(names, values(content[2:]), strict=True)))
        elif kind == b"E":
            # Fields: one letter, a text, a zero byte; M is for people.
            fields = {field[:1]: field[1:].decode() for field in content.split(b"\0")}
            complaint = fields.get(b"M", "it complains")
            # After this one the server hangs up.
            if fields.get(b"S") == "FATAL":
                break
        elif kind == b"R" and content[:4] != b"\0\0\0\0":
            raise ValueError("it wants a password")
    else:
        stream.read(5)
    if complaint:
        raise NoAnswer(f"the pool: {complaint}")
    return found


def values(content: bytes) -> Iterator[str]:
    """The texts of one row; what is nothing is empty."""
    while content:
        (length,) = struct.unpack("!i", content[:4])
        length = max(length, 0)
        yield content[4 : 4 + length].decode()
        content = content[4 + length :]


class Pool:
    """One database of this host's PgBouncer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = settings.database
        self.console = f"{SOCKETS}/.s.PGSQL.{settings.pool_port}"

    def pause(self) -> bool:
        """Let queries wait; false when they wait already because somebody else wants it. Raises NoAnswer."""
        before = {row["name"]: row["paused"] for row in tell(self.console, "SHOW DATABASES", CONSOLE_S)}
        if before.get(self.database) == "1":
            return False
        tell(self.console, f"SET query_wait_timeout = {self.settings.limit_s + SLACK_S}", CONSOLE_S)
        try:
            tell(self.console, f"PAUSE {self.database}", PAUSE_S)
        except NoAnswer as reason:
            # A transaction is not over yet; what comes new waits all the same.
            if SLOW not in str(reason):
                raise
        return True

    def resume(self) -> None:
        """Let queries go on, then be as impatient as configured; fine when they go on already. Raises NoAnswer."""
        self._lift()
        deadline = time.monotonic() + DRAINED_S
        # Impatience would hit those who have waited through the pause and come only now to their turn.
        while (waits := self._longest_wait_s()) >= 1 and time.monotonic() < deadline and not PLANNED.exists():
            time.sleep(0.1)
        if PLANNED.exists():
            return
        if waits >= 1:
            # A pause that met a login stays in the pool until it is lifted once more.
            self._lift()
        tell(self.console, "RELOAD", CONSOLE_S)

    def _lift(self) -> None:
        try:
            tell(self.console, f"RESUME {self.database}", CONSOLE_S)
        except NoAnswer as reason:
            if "is not paused" not in str(reason):
                raise

    def _longest_wait_s(self) -> int:
        """For how long the first in the queue has waited, in whole seconds. Raises NoAnswer."""
        pools = tell(self.console, "SHOW POOLS", CONSOLE_S)
        return max((int(row["maxwait"]) for row in pools if row["database"] == self.database), default=0)

    def write(self) -> None:
        """Write by the way that queries take after the pool. Raises NoAnswer when that is not acknowledged."""
        # HAProxy gives connections in turn to all that it takes for the leader: for a moment these may be two.
        with concurrent.futures.ThreadPoolExecutor() as threads:
            for done in [threads.submit(self._write), threads.submit(self._write)]:
                done.result()

    def _write(self) -> None:
        where = (
            f"host={self.settings.leader_host} port={self.settings.leader_port} user={self.settings.user} "
            f"dbname={self.database} connect_timeout=2 sslmode=verify-full sslrootcert={self.settings.ca}"
        )
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": self.settings.password}
        try:
            done = subprocess.run(
                ["psql", "-XAtqw", where, "-c", WRITE], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"no write was acknowledged within {PATIENCE_S:.0f} s") from None
        # A commit that was not replicated is a success with a warning.
        if done.returncode or done.stderr:
            raise NoAnswer(done.stderr.strip() or f"psql ended with {done.returncode}")


class Guard:
    """Poll by poll. `mark` is a file that is there while the pool is paused from here; `say` is told every decision."""

    def __init__(
        self, settings: Settings, members: Members, pool: Pool, mark: Path, say: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.members = members
        self.pool = pool
        self.mark = mark
        self.say = say
        self.leader = ""
        # When it said so.
        self.heard = 0.0
        self.turn = 0
        # Polls in a row in which nobody said that it leads; how many are an alarm; whether one may be raised.
        self.missed = 0
        self.enough = settings.polls
        self.armed = False
        # Since when the pool is paused. What an earlier guard left is over.
        self.paused: float | None = 0.0 if mark.exists() else None
        self.alarmed = 0.0
        # When a plan last changed who leads.
        self.planned = -NEW_S

    def poll(self) -> None:
        """Ask once, and act. Raises NoAnswer."""
        self.turn += 1
        calm = self.leader and not self.missed and self.paused is None
        leader, denied = self.members.ask([self.leader] if calm and self.turn % OTHERS_EVERY else self.settings.members)
        if self.paused is not None:
            self._wait(leader, self.paused)
        elif leader and self.armed and self.leader not in ("", leader):
            # Who led before may not know it yet, nor HAProxy.
            self._alarm(f"{leader} leads instead of {self.leader}")
            if self.paused is None:
                self._lead(leader)
        elif leader:
            self._lead(leader)
        else:
            self.missed += 1
            if not self.armed or (self.leader not in denied and self._may_be_slow()):
                return
            if denied:
                self._alarm("nobody leads")
            else:
                self.say("no member answers: nothing is done")

    def _may_be_slow(self) -> bool:
        """Whether the leader's silence is no alarm yet."""
        # It is heard twice at least, so that all were asked.
        if self.missed < max(self.enough, 2):
            return True
        now = time.monotonic()
        patience = BUSY_NEW_S if now - self.planned < NEW_S else BUSY_S
        return self.members.busy(self.leader) and now - self.heard < patience

    def _lead(self, leader: str) -> None:
        if leader != self.leader:
            self.say(f"{leader} leads")
        self.leader, self.heard, self.missed, self.armed = leader, time.monotonic(), 0, True
        if time.monotonic() - self.alarmed > DOUBT_S:
            self.enough = self.settings.polls

    def _alarm(self, why: str) -> None:
        """Let queries wait, unless they do already. Raises NoAnswer."""
        if PLANNED.exists():
            self.say(f"{why}, and a plan holds the pool: nothing is done")
            # Whoever leads next does so as planned.
            self.leader, self.planned = "", time.monotonic()
            return
        self.alarmed = time.monotonic()
        # First the mark: whatever happens now, somebody knows that the pool may be paused.
        self.mark.touch()
        try:
            ours = self.pool.pause()
        except NoAnswer:
            self.mark.unlink()
            raise
        if ours:
            self.paused = self.alarmed
            self.say(f"{why}: queries wait")
        else:
            self.mark.unlink()
            self.armed = False
            self.say(f"{why}, and somebody has paused the pool: nothing is done")

    def _wait(self, leader: str, since: float) -> None:
        """Queries wait: let them go on as soon as that is good, or late enough. Raises NoAnswer."""
        waited = time.monotonic() - since
        if PLANNED.exists():
            self._over("a plan holds the pool now: it is left to that")
        elif waited >= self.settings.limit_s:
            self.armed = False
            self.pool.resume()
            self._over("nobody leads for too long: queries go on")
        elif leader:
            self.pool.write()
            self.pool.resume()
            self.enough = (
                min(2 * self.enough, DOUBT * self.settings.polls) if leader == self.leader else self.settings.polls
            )
            self._over(f"{leader} has acknowledged a write: queries go on after {time.monotonic() - since:.1f} s")
            self._lead(leader)

    def _over(self, what: str) -> None:
        self.mark.unlink(missing_ok=True)
        self.paused, self.missed = None, 0
        self.say(what)


def once(line: Callable[[str], None]) -> Callable[[str], None]:
    """Print what differs from what was said last."""
    last = ""

    def say(message: str) -> None:
        nonlocal last
        if message != last:
            last = message
            line(message)

    return say


def notify(state: str) -> None:
    """Tell systemd (`READY=1`, `WATCHDOG=1`)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def watch(guard: Guard) -> None:
    """Poll for ever."""
    notify("READY=1")
    while True:
        began = time.monotonic()
        try:
            guard.poll()
        except NoAnswer as reason:
            guard.say(str(reason))
        notify("WATCHDOG=1")
        time.sleep(max(0.0, began + guard.settings.interval_s - time.monotonic()))


def resume(pool: Pool, mark: Path, say: Callable[[str], None]) -> None:
    """Let go on what was left paused, unless a plan holds it by now; tried until it works."""
    while mark.exists() and not PLANNED.exists():
        try:
            pool.resume()
        except NoAnswer as reason:
            say(str(reason))
            time.sleep(0.5)
        else:
            mark.unlink()
            say("the guard has ended: queries go on")


def main() -> None:
    """Watch, or clean up after a guard that has ended."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    mark = Path(os.environ["RUNTIME_DIRECTORY"]) / "paused"
    say = once(lambda message: print(message, flush=True))
    pool = Pool(settings)
    if sys.argv[2:] == ["resume"]:
        resume(pool, mark, say)
    else:
        members = Members(settings, ssl.create_default_context(cafile=settings.ca))
        watch(Guard(settings, members, pool, mark, say))


if __name__ == "__main__":
    main()
