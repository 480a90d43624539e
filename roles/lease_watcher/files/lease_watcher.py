#!/usr/bin/python3
"""Let another member lead Postgres seconds after the leader's host fell silent, not only when its lease has run out.

    arches-lease-watcher SETTINGS

Patroni waits for the end of the leader's lease (20 s at least). This ends the lease in etcd earlier, and only when
nothing can be lost by that:

  1. the leader's Patroni and its Postgres were silent in each of the last polls, and
  2. no WAL is received from it any more, so that strict synchronous replication keeps it from acknowledging anything,
  3. seen from here and from every other member at the same time: each tells the others in etcd what it sees, and what
     is told counts only while it is renewed;
  4. a majority of etcd's members, two at least, agrees on who leads, and the cluster is not paused.

Whatever is not known counts against it. A leader that lives after all takes its lease again, and keeps everybody
waiting when it reads what is in etcd and is not heard (answers are lost on one way). Such a one is asked in etcd to
step down, which a planned switchover does, too, and which loses nothing. It is asked as soon as its WAL is overdue:
when its last standby has hung up, Patroni's list of who may follow is empty, and it refuses (its
`Ha.get_failover_candidates`). And it is asked until somebody leads. Otherwise it might lead again after it has stepped
down, on a new timeline that nobody hears of; whoever leads next would give its own the same number, and of two
histories with one number only the first can be archived.

The watcher on the leader's host has etcd led from another one. Were both leaders mute, the leader of Postgres could not
renew its lease while etcd chooses; it would tell the other members that it goes on without (Patroni's failsafe mode),
and by that keep them from leading for 20 s, even after it has stepped down.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import enum
import http.client
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCOPE = "/service/arches/"
STEP_DOWN = f"{SCOPE}failover"
VIEWS = "/arches/watch/"
# A view or request that is not renewed is gone after this time; etcd makes it longer where its elections take longer.
VIEW_TTL_S = 2
# A view counts while it is renewed at least once in so many polls.
FRESH_POLLS = 3
# After so many polls without a leader, whose lease was ended is asked to let another one lead.
UNLED_POLLS = 6
# In so many polls the leader looks once whether etcd is led from its host.
ETCD_POLLS = 10
# What PostgreSQL is asked first by a client that wants TLS; it answers with one byte.
SSL_REQUEST = struct.pack("!II", 8, 80877103)
# A receiver asks for an answer when half of its time is over.
RECEIVER = """
    SELECT CASE WHEN last_msg_receipt_time > now() - 0.75 * current_setting('wal_receiver_timeout')::interval
        THEN 'flows' ELSE 'overdue' END
    FROM pg_stat_wal_receiver WHERE status = 'streaming'
"""
PSQL_S = 2.0


class NoAnswer(Exception):
    """Who gave no answer, and why."""


class Unknown(NoAnswer):
    """What was asked for is not there."""


class Settings(NamedTuple):
    """What the role wrote. `members` maps names to addresses, times are in seconds."""

    name: str
    members: Mapping[str, str]
    etcd: Sequence[str]
    patroni_port: int
    postgres_port: int
    ca: str
    certificate: str
    key: str
    interval_s: float
    answer_s: float
    polls: int
    monitor: str
    monitor_password: str
    database: str


class Leader(NamedTuple):
    """Who holds which lease."""

    name: str
    lease: str


class Wal(enum.IntEnum):
    """What comes from the leader: nothing any more, nothing for longer than it should, or WAL."""

    ENDED = 0
    OVERDUE = 1
    FLOWS = 2


class View(NamedTuple):
    """What one member tells of the leader: for how many polls it was silent, and what still comes from it."""

    of: Leader
    silent: int
    wal: Wal
    revision: int


class Found(NamedTuple):
    """What is written in etcd, at one moment. `asked` is whom a watcher asks to step down."""

    leader: Leader | None
    asked: str
    paused: bool
    views: Mapping[str, View]


def post(address: str, path: str, body: Any, context: ssl.SSLContext, seconds: float) -> dict[str, Any]:
    """One question to a member of etcd (`host:port`). Raises NoAnswer (silence, refusal) or Unknown (a lost lease)."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=seconds, context=context)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read() or b"{}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"etcd on {address}: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.NOT_FOUND:
        raise Unknown(f"etcd on {address}: {said}")
    if answer.status != http.HTTPStatus.OK or not isinstance(said, dict):
        raise NoAnswer(f"etcd on {address}: status {answer.status}")
    return said


def text(value: str) -> str:
    """Text as etcd's JSON interface wants it."""
    return base64.b64encode(value.encode()).decode()


def below(prefix: str) -> dict[str, Any]:
    """A question for all keys that begin with a prefix that ends in a slash."""
    return {"request_range": {"key": text(prefix), "range_end": text(prefix[:-1] + "0")}}


def pairs(response: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Value and record by key, from one answer to a range."""
    found = response["response_range"].get("kvs", [])
    return {
        base64.b64decode(record["key"]).decode(): (base64.b64decode(record.get("value", "")).decode(), record)
        for record in found
    }


def read(answer: Mapping[str, Any]) -> Found:
    """What etcd has said. Raises NoAnswer for something that neither Patroni nor a watcher wrote."""
    try:
        scope, told = (pairs(response) for response in answer["responses"])
        name, record = scope.get(f"{SCOPE}leader", ("", {}))
        settings = json.loads(scope.get(f"{SCOPE}config", ("{}", {}))[0])
        request, lasts = scope.get(STEP_DOWN, ("{}", {}))
        # A planned switchover's request has no lease.
        asked = json.loads(request)["leader"] if int(lasts.get("lease", 0)) else ""
        views = {}
        for key, (value, view) in told.items():
            said = json.loads(value)
            of = Leader(said["leader"], said["lease"])
            views[key.removeprefix(VIEWS)] = View(of, int(said["silent"]), Wal(said["wal"]), int(view["mod_revision"]))
        return Found(Leader(name, record["lease"]) if name else None, asked, bool(settings.get("pause")), views)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise NoAnswer(f"etcd: what is written there was not understood ({error!r})") from None


class Etcd:
    """The members of etcd, asked all at once, so that a dead one costs nothing."""

    def __init__(self, members: Sequence[str], context: ssl.SSLContext, seconds: float) -> None:
        self.members = members
        self.enough = max(2, len(members) // 2 + 1)
        self.context = context
        self.seconds = seconds
        # A silent member keeps a thread until its time is over.
        self.pool = concurrent.futures.ThreadPoolExecutor(8 * len(members))

    def ask(self, path: str, body: Any, enough: int) -> dict[str, dict[str, Any]]:
        """The first `enough` answers by member. Raises NoAnswer when there are fewer in time."""

        def one(member: str) -> tuple[str, dict[str, Any]]:
            return member, post(member, path, body, self.context, self.seconds)

        answers: dict[str, dict[str, Any]] = {}
        reasons = []
        for future in concurrent.futures.as_completed([self.pool.submit(one, member) for member in self.members]):
            try:
                member, answer = future.result()
            except NoAnswer as reason:
                reasons.append(str(reason))
                continue
            answers[member] = answer
            if len(answers) >= enough:
                return answers
        raise NoAnswer("; ".join(reasons) or f"etcd has {len(self.members)} member")

    def look(self) -> tuple[Found, list[str]]:
        """What a majority says, and its members, who are asked to write next. Raises NoAnswer."""
        answers = self.ask("/v3/kv/txn", {"success": [below(SCOPE), below(VIEWS)]}, self.enough)
        found = {member: read(answer) for member, answer in answers.items()}
        leaders = {one.leader for one in found.values()}
        if len(leaders) > 1:
            raise NoAnswer("etcd: its members name different leaders")
        latest = max(answers, key=lambda member: int(answers[member]["header"]["revision"]))
        return found[latest], list(answers)

    def tell(self, member: str, key: str, value: Any) -> None:
        """Write something that is gone again after `VIEW_TTL_S` seconds. Raises NoAnswer."""
        lease = post(member, "/v3/lease/grant", {"TTL": VIEW_TTL_S}, self.context, self.seconds).get("ID")
        said = {"key": text(key), "value": text(json.dumps(value)), "lease": lease}
        post(member, "/v3/kv/put", said, self.context, self.seconds)

    def step_down(self, member: str, leader: str) -> None:
        """Ask a leader, as `patronictl switchover` does, to let any other member lead. Raises NoAnswer."""
        self.tell(member, STEP_DOWN, {"leader": leader})

    def withdraw(self, member: str) -> None:
        """It is not asked any more. Raises NoAnswer."""
        post(member, "/v3/kv/deleterange", {"key": text(STEP_DOWN)}, self.context, self.seconds)

    def revoke(self, lease: str) -> None:
        """End a lease, or find it ended. Raises NoAnswer."""

        def one(member: str) -> None:
            # The others come to the same decision at the same time.
            with contextlib.suppress(Unknown):
                post(member, "/v3/lease/revoke", {"ID": lease}, self.context, self.seconds)

        reasons = []
        for future in concurrent.futures.as_completed([self.pool.submit(one, member) for member in self.members]):
            try:
                return future.result()
            except NoAnswer as reason:
                reasons.append(str(reason))
        raise NoAnswer("; ".join(reasons))

    def lead_elsewhere(self, host: str) -> str:
        """Where etcd is led from this address: have another member lead, and say which. Raises NoAnswer."""
        own = next((member for member in self.members if member.rpartition(":")[0] == host), "")
        if not own or len(self.members) < 3:  # of two, each is needed
            return ""
        status = self._status(own)
        leader = status["header"]["member_id"]
        if status.get("leader") != leader:
            return ""
        reasons = []
        for member in self.members:
            try:
                if member == own or (other := self._status(member)).get("leader") != leader:
                    continue
            except NoAnswer as reason:
                reasons.append(str(reason))
                continue
            target = {"targetID": other["header"]["member_id"]}
            post(own, "/v3/maintenance/transfer-leadership", target, self.context, self.seconds)
            return member
        raise NoAnswer("; ".join(reasons) or "etcd: no other member follows its leader")

    def _status(self, member: str) -> dict[str, Any]:
        return post(member, "/v3/maintenance/status", {}, self.context, self.seconds)


def patroni_status(address: str, port: int, context: ssl.SSLContext, seconds: float) -> int:
    """Status of Patroni's /primary: 200 on the leader; 0 for silence."""
    connection = http.client.HTTPSConnection(address, port, timeout=seconds, context=context)
    try:
        connection.request("GET", "/primary")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def postgres_answers(address: str, port: int, seconds: float) -> bool:
    """Whether a PostgreSQL says anything: a stopped process still has its connections accepted by the kernel."""
    try:
        with socket.create_connection((address, port), seconds) as connection:
            connection.settimeout(seconds)
            connection.sendall(SSL_REQUEST)
            return connection.recv(1) != b""
    except OSError:
        return False


def received_wal(settings: Settings) -> Wal:
    """What comes to this host's Postgres. Raises NoAnswer."""
    where = f"host=/run/postgresql port={settings.postgres_port} user={settings.monitor} dbname={settings.database}"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": settings.monitor_password}
    try:
        done = subprocess.run(
            ["psql", "-XAtqw", where, "-c", RECEIVER], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=PSQL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"this host's Postgres: no answer within {PSQL_S:.0f} s") from None
    if done.returncode:
        raise NoAnswer(f"this host's Postgres: {done.stderr.strip()}")
    return Wal[done.stdout.strip().upper() or "ENDED"]


def objection(leader: Leader, own: Wal, views: Mapping[str, View], others: Sequence[str], polls: int, most: Wal) -> str:
    """Why nothing must be done about the leader, in words; empty if something may be.

    :param own: what comes to this host.
    :param views: what the others tell just now.
    :param others: the members that have a say: all but this one and the leader.
    :param polls: for how many polls the leader must have been silent.
    :param most: what may still come from it.
    """
    if not others:
        return "nobody else is there to agree"
    if own > most:
        return "this host receives WAL from it"
    for name in others:
        if name not in views or views[name].of != leader or views[name].silent < polls:
            return f"{name} does not find it silent"
        if views[name].wal > most:
            return f"{name} receives WAL from it"
    return ""


class Watcher:
    """One member's view, poll by poll. `say` is told every decision."""

    def __init__(self, settings: Settings, context: ssl.SSLContext, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.context = context
        self.etcd = Etcd(settings.etcd, context, settings.answer_s)
        self.say = say
        self.pool = concurrent.futures.ThreadPoolExecutor(4)
        self.leader: Leader | None = None
        self.silent = 0
        # Whose lease was ended, until that one is heard or another one leads.
        self.ended = ""
        # For how many polls: nobody led, this host has led.
        self.unled = self.led = 0
        # Of each other member's view: the revision seen last, and when it was first seen to be newer than another.
        self.seen: dict[str, int] = {}
        self.renewed: dict[str, float] = {}

    def poll(self) -> None:
        """Look once, and act if that is safe. Raises NoAnswer when too little is known."""
        leads, silent = self._ask_leader()
        self.silent = self.silent + 1 if silent else 0
        if leads:
            self.ended = ""
            self._have_etcd_led_elsewhere()
            return
        found, members = self.etcd.look()
        if found.leader != self.leader:
            # Silent for so long: one of the watchers has ended that lease.
            if self.leader and self.silent >= self.settings.polls:
                self.ended = self.leader.name
            if found.leader and found.leader.name != self.ended:
                self.ended = ""
            self.leader = found.leader
            # Who took its lease again is asked as soon as the others say the same: Patroni will soon have no successor.
            self.silent = self.settings.polls if found.leader and found.leader.name == self.ended else 0
            self.say(f"{found.leader.name} leads" if found.leader else "nobody leads")
        self._hear(found.views)
        self.unled = 0 if found.leader else self.unled + 1
        former = found.asked or (self.ended if self.unled > UNLED_POLLS else "")
        if not found.leader and former:
            self.etcd.step_down(members[0], former)
        # The first silence may be an accident, and is not worth telling.
        if (
            self.leader is not None
            and self.leader.name != self.settings.name
            and self.silent >= min(2, self.settings.polls)
        ):
            self._suspect(self.leader, found, members)

    def _have_etcd_led_elsewhere(self) -> None:
        """On the host that leads, now and then. Raises NoAnswer."""
        self.led = self.led + 1 if self.leader and self.leader.name == self.settings.name else 0
        if self.led % ETCD_POLLS != 1:
            return
        if member := self.etcd.lead_elsewhere(self.settings.members[self.settings.name]):
            self.say(f"{self.settings.name} led Postgres and etcd: etcd is led by {member} now")

    def _ask_leader(self) -> tuple[bool, bool]:
        """Whether it says that it leads, and whether it is silent: its Patroni and its Postgres, asked at once."""
        address = self.settings.members.get(self.leader.name) if self.leader else None
        if address is None:
            return False, False
        seconds = self.settings.answer_s
        status = self.pool.submit(patroni_status, address, self.settings.patroni_port, self.context, seconds)
        # In good times Postgres is left alone.
        if not self.silent and (said := status.result()):
            return said == http.HTTPStatus.OK, False
        answers = self.pool.submit(postgres_answers, address, self.settings.postgres_port, seconds)
        said = status.result()
        return said == http.HTTPStatus.OK, not said and not answers.result()

    def _hear(self, views: Mapping[str, View]) -> None:
        now = time.monotonic()
        for name, view in views.items():
            if name in self.seen and view.revision > self.seen[name]:
                self.renewed[name] = now
        self.seen = {name: view.revision for name, view in views.items()}

    def _suspect(self, leader: Leader, found: Found, members: Sequence[str]) -> None:
        """The leader is silent from here: tell the others, hear them, ask it or end its lease. Raises NoAnswer."""
        own = received_wal(self.settings)
        said = {"leader": leader.name, "lease": leader.lease, "silent": self.silent, "wal": own}
        self.etcd.tell(members[0], VIEWS + self.settings.name, said)
        if self.silent < self.settings.polls:
            return
        # Somebody who is cut off leaves a view behind: only who keeps telling is heard.
        since = time.monotonic() - FRESH_POLLS * self.settings.interval_s
        fresh = {name: view for name, view in found.views.items() if self.renewed.get(name, 0.0) >= since}
        others = [name for name in self.settings.members if name not in (self.settings.name, leader.name)]
        to_ask, to_end = (
            objection(leader, own, fresh, others, self.settings.polls, most) for most in (Wal.OVERDUE, Wal.ENDED)
        )
        if reason := "the cluster is paused" if found.paused else to_ask:
            self.say(f"{leader.name} is silent, its lease stays: {reason}")
            return
        if to_end or leader.name == self.ended:
            self.etcd.step_down(members[0], leader.name)
            self.say(f"{leader.name} is silent for all and holds its lease: it is asked to step down")
            return
        # Who lost an election waits two seconds in Patroni when there is a request, before it follows the winner.
        self.etcd.withdraw(members[0])
        self.etcd.revoke(leader.lease)
        self.say(f"{leader.name} is silent for all and no WAL comes from it: its lease is ended")


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


def main() -> None:
    """Poll for ever."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    context = ssl.create_default_context(cafile=settings.ca)
    context.load_cert_chain(settings.certificate, settings.key)
    say = once(lambda message: print(message, flush=True))
    watcher = Watcher(settings, context, say)
    notify("READY=1")
    while True:
        began = time.monotonic()
        try:
            watcher.poll()
        except NoAnswer as reason:
            say(f"nothing is done: {reason}")
        notify("WATCHDOG=1")
        time.sleep(max(0.0, began + settings.interval_s - time.monotonic()))


if __name__ == "__main__":
    main()
