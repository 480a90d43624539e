"""One lock for the whole fleet: a key in etcd on a lease, with its holder, and the process that keeps it.

Run as a program it is that process: it renews the lease for as long as the playbook lives and gives it back when the
playbook ends, however it ends. For the controller only.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Collection, Mapping
from pathlib import Path

from json_https import NoAnswer, Response, ask, in_parallel, tls_context

KEY = "/arches/lock"
# A crash of the controller frees the lock after this time at the latest.
TTL_S = 30
# A dead host must not cost more than this each time that it is asked.
ANSWER_S = 3.0
# etcd chooses a leader in one to three seconds; whoever takes the lock just then waits for that.
ELECTION_S = 10.0
# A playbook that has just ended gives its lock back within this time: the next one waits for it.
GIVEN_BACK_S = 3.0


class LockError(Exception):
    """Why there is no lock, and what to do about it."""


class NoQuorum(LockError):
    """etcd cannot say anything, so nobody can have a lock."""


class Claim(t.NamedTuple):
    """Who wants the lock, or has it. `run` tells one process from all others."""

    holder: str
    purpose: str
    since: str
    run: str


class Found(t.NamedTuple):
    """A claim as it lies in etcd."""

    claim: Claim
    lease: str
    revision: str


class Etcd:
    """The members, asked over mutual TLS; the first one that is part of a majority answers for all.

    Without a majority they are asked again for `patience_s` seconds. A request may then be done twice: its answer can
    be lost with a leader.
    """

    def __init__(self, endpoints: Mapping[str, str], context: ssl.SSLContext, patience_s: float = 0.0) -> None:
        self.endpoints = dict(endpoints)
        self.context = context
        self.patience_s = patience_s
        self._last = ""  # who answered last is asked first

    def call(self, path: str, body: Mapping[str, t.Any]) -> dict[str, t.Any]:
        """The answer to one request, empty where etcd does not know what it is about. Raises NoQuorum."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self._call(path, body)
            except NoQuorum:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def _call(self, path: str, body: Mapping[str, t.Any]) -> dict[str, t.Any]:
        reasons = {}
        for name in self._members():
            try:
                answer = self._ask(name, path, body)
            except NoAnswer as reason:
                reasons[name] = str(reason)
                continue
            if answer.status in (200, 404):
                self._last = name
                return dict(answer.body) if answer.status == 200 else {}
            reasons[name] = str(answer.body)
        raise NoQuorum(no_quorum(reasons))

    def _ask(self, name: str, path: str, body: Mapping[str, t.Any]) -> Response:
        url = f"{self.endpoints[name]}/v3/{path}"
        return ask(url, context=self.context, method="POST", body=body, timeout=ANSWER_S)

    def _members(self) -> t.Iterator[str]:
        if self._last:
            yield self._last
        yield from self._in_a_majority()

    def _in_a_majority(self) -> list[str]:
        """Names of the members that have a leader. Raises NoQuorum when none has."""

        def health(name: str) -> Response:
            return ask(f"{self.endpoints[name]}/health", context=self.context, timeout=ANSWER_S)

        asked = in_parallel(health, self.endpoints)
        healthy = [name for name, said in asked.items() if isinstance(said, Response) and said.status == 200]
        if not healthy:
            raise NoQuorum(
                no_quorum({n: str(said.body if isinstance(said, Response) else said) for n, said in asked.items()})
            )
        return healthy


def no_quorum(reasons: Mapping[str, str]) -> str:
    """What every member said instead of an answer."""
    return "etcd has no quorum (" + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) + ")"


# Leases and the key


def grant(etcd: Etcd, ttl_s: int) -> str:
    """A new lease. Raises NoQuorum."""
    return str(etcd.call("lease/grant", {"TTL": ttl_s})["ID"])


def renew(etcd: Etcd, lease: str) -> bool:
    """Whether the lease still lives; if so it has its full time again. Raises NoQuorum."""
    return int(etcd.call("lease/keepalive", {"ID": lease}).get("result", {}).get("TTL", 0)) > 0


def revoke(etcd: Etcd, lease: str) -> None:
    """End a lease and with it the lock. One that has ended already is fine. Raises NoQuorum."""
    etcd.call("lease/revoke", {"ID": lease})


def look(etcd: Etcd) -> Found | None:
    """Who has the lock. Raises NoQuorum."""
    return found(etcd.call("kv/range", {"key": text64(KEY)}))


def put_if(etcd: Etcd, claim: Claim, lease: str, compare: Mapping[str, str]) -> Found | None:
    """Take the lock where `compare` holds for its key; otherwise who has it. Raises NoQuorum."""
    put = {"key": text64(KEY), "value": text64(json.dumps(claim._asdict())), "lease": lease}
    answer = etcd.call(
        "kv/txn",
        {
            "compare": [{"key": text64(KEY), "result": "EQUAL", **compare}],
            "success": [{"requestPut": put}],
            "failure": [{"requestRange": {"key": text64(KEY)}}],
        },
    )
    return None if answer.get("succeeded") else found(answer["responses"][0]["response_range"])


ABSENT = {"target": "CREATE", "createRevision": "0"}


def found(answer: Mapping[str, t.Any]) -> Found | None:
    """The lock in an answer to a range, or nobody's."""
    for pair in answer.get("kvs", []):
        claim = json.loads(base64.b64decode(pair["value"]))
        return Found(Claim(**claim), str(pair["lease"]), str(pair["mod_revision"]))
    return None


def text64(text: str) -> str:
    """Text as the JSON gateway wants it."""
    return base64.b64encode(text.encode()).decode()


def acquire(
    etcd: Etcd, claim: Claim, break_holder: str = "", ttl_s: int = TTL_S, family: Collection[str] = ()
) -> str | None:
    """Take the lock and return its lease; None when this very run has it already, or one of `family`.

    `break_holder` takes it from that holder, who notices when its lease is renewed next. Raises LockError.
    """
    lease = grant(etcd, ttl_s)
    taken = False
    try:
        deadline = time.monotonic() + GIVEN_BACK_S
        while not taken:
            other = put_if(etcd, claim, lease, ABSENT)
            if other and other.lease == lease:
                taken = True  # the answer that said so was lost
            elif other and other.claim.run in (claim.run, *family):
                return None
            elif other and other.claim.holder == break_holder:
                same = {"target": "MOD", "modRevision": other.revision}
                taken = put_if(etcd, claim, lease, same) is None
                if taken:
                    revoke(etcd, other.lease)
            elif other and (break_holder or time.monotonic() > deadline):
                raise LockError(held(other.claim, break_holder))
            else:
                taken = other is None
            if not taken:
                time.sleep(0.1)
    finally:
        if not taken:
            revoke(etcd, lease)
    return lease


def held(claim: Claim, break_holder: str = "") -> str:
    """The sentence for whoever comes second."""
    wrong = f"break_lock names {break_holder}, who does not have it. " if break_holder else ""
    return (
        f"The fleet is locked by {claim.holder} for {claim.purpose} since {claim.since}. {wrong}"
        f"Wait until that run has ended; if it is dead for sure, take the lock with -e break_lock={claim.holder}"
    )


def assure(etcd: Etcd, family: Collection[str]) -> None:
    """Make sure that a run, or one that it is part of, still has the lock it took. Raises LockError."""
    now = look(etcd)
    if now is None or now.claim.run not in family:
        whose = f"{now.claim.holder} has it for {now.claim.purpose} since {now.claim.since}" if now else "nobody has it"
        raise LockError(
            f"This run has lost the fleet lock: {whose}. "
            f"Somebody broke it, or this computer could not reach etcd for {TTL_S} s. "
            f"See who else works on the fleet, then start the playbook again: it goes on where it stopped"
        )


# This process, and the one that keeps


def holder() -> str:
    """Who sits here: user@computer, the person behind sudo."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"


def run_of(pid: int) -> str:
    """A name for one process of this computer that no other will have: numbers of processes come again."""
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()}:{pid}:{started}"


def family_of(pid: int) -> list[str]:
    """A process and those that started it: what a playbook starts is part of it and needs no lock of its own."""
    family = []
    while pid > 1:
        family.append(run_of(pid))
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return family


def keep(endpoints: Mapping[str, str], ca: str, own: str, lease: str, pid: int, ttl_s: int) -> None:
    """Start the process that keeps a lease while `pid` lives. `ca` and `own` are PEM. Raises LockError."""
    keeper = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, cwd="/", text=True,
    )  # fmt: skip
    assert keeper.stdin and keeper.stdout and keeper.stderr  # noqa: S101 (asked for above)
    orders = {"endpoints": dict(endpoints), "ca": ca, "own": own, "lease": lease, "pid": pid, "ttl_s": ttl_s}
    try:
        keeper.stdin.write(json.dumps(orders))
        keeper.stdin.close()
    except BrokenPipeError:
        pass  # it says why below
    if not keeper.stdout.readline():
        raise LockError(f"The process that keeps the fleet lock did not start: {keeper.stderr.read().strip()[-500:]}")


def context_of(ca: str, own: str) -> ssl.SSLContext:
    """Trust in one CA and our own key and certificate, all from PEM text."""
    with tempfile.TemporaryDirectory(prefix="arches-") as folder:
        Path(folder, "ca").write_text(ca)
        Path(folder, "own").touch(mode=0o600)
        Path(folder, "own").write_text(own)
        return tls_context(f"{folder}/ca", f"{folder}/own")


def main() -> None:
    """Keep a lease while a process lives, then give it back."""
    orders = json.load(sys.stdin)
    etcd = Etcd(orders["endpoints"], context_of(orders["ca"], orders["own"]))
    lease, third_ms = orders["lease"], orders["ttl_s"] * 1000 // 3
    ends = select.poll()
    try:
        ends.register(os.pidfd_open(orders["pid"]), select.POLLIN)
        print("kept", flush=True)
        # Nobody listens from here on.
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        while not ends.poll(third_ms):
            try:
                if not renew(etcd, lease):
                    return  # lost: the playbook notices at its next stage
            except NoQuorum:
                continue  # leases do not end while etcd has no majority
    except ProcessLookupError:
        pass
    revoke(etcd, lease)


if __name__ == "__main__":
    main()
