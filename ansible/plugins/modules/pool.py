"""Let the queries of this host's pool (PgBouncer) wait while leadership moves, and go on when a leader accepts writes.

    - name: The pool waits
      pool: {state: paused, database: arches, port: 6432}
    - name: The pool waits until a new leader is there
      pool:
        state: bridged
        database: arches
        port: 6432
        leader: {host: postgres, port: 5000, user: app, password: ..., ca: /etc/arches/tls/ca.crt, not: 203.0.113.31}
        patroni: https://203.0.113.31:8008

`asked` changes nothing and says how the pool is.
`paused` returns when no transaction runs any more, or fails and lets the pool go on when one takes longer than
`within_s`. `resumed` lets the pool go on.
`bridged` pauses it, waits until a write by way of `leader` is acknowledged by another server than `not`, and lets it go
on after that. With `patroni`, the leader's, it pauses in the moment when that is about to stop Postgres, and never when
it does not. A transaction that takes longer than `within_s` is not waited for then.
Whatever happens to the playbook, systemd lets the pool go on `at_most_s` after it was paused.

Result: changed, waited_s (until a write was acknowledged), leader (the address that acknowledged it); with `asked` pool
(paused; size; working and waiting: connections to Postgres in use, clients without one; longest_wait_s) or, when it
does not answer, why.
"""

from __future__ import annotations

import concurrent.futures
import csv
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.patroni import Patroni, PatroniError

UNIT = "arches-pool-resume"
SOCKET = "/run/postgresql"
# A real change that is replicated before it is acknowledged, and leaves nothing behind.
WRITE = "SELECT host(inet_server_addr()) FROM pg_logical_emit_message(true, 'arches', 'is this written?')"
POLL_S = 0.25
# HAProxy holds on for seconds to a connection whose server has gone, while another one would find the next leader: so
# many are tried at once, each for so long.
AT_ONCE, HELD_S = 4, 2.0
# So long it may take a leader to be about to stop after it was asked to.
STOPS_S = 30.0
# After a pause PgBouncer stays patient until all who waited had their turn, for so long at most. The timer cannot look
# at the queue: it waits for a fixed time.
DRAINED_S, TIMER_DRAINED_S = 10, 5
# A pool whose leader works, works within this time; each try waits behind all who have waited.
WORKS_S, TRY_S = 20.0, 5.0


class PoolError(Exception):
    """What is wrong and what to do about it."""


class Slow(PoolError):
    """There was no answer in time."""


def psql(
    connection: str, *commands: str, seconds: float, password: str = "", user: str | None = None
) -> list[dict[str, str]]:
    """The rows that psql prints, run as a user of the system or as we are. Raises PoolError, also when it is slow."""
    line = ["psql", "-Xqw", "--csv", "-v", "ON_ERROR_STOP=1", connection]
    line += [word for command in commands for word in ("-c", command)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": password}
    try:
        done = subprocess.run(
            line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(seconds, 0.1),
            check=False, user=user,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Slow(f"no answer within {seconds:.1f} s") from None
    if done.returncode:
        raise PoolError(done.stderr.strip() or f"psql ended with {done.returncode}")
    return list(csv.DictReader(done.stdout.splitlines()))


def longest_wait_s(queues: t.Iterable[t.Mapping[str, str]]) -> int:
    """For how long the first in any of these queues has waited, in whole seconds."""
    return max((int(row["maxwait"]) for row in queues), default=0)


class Pool:
    """One database of this host's PgBouncer."""

    def __init__(self, database: str, port: int) -> None:
        self.database = database
        self.port = port

    # On its own socket PgBouncer trusts the user it runs as.
    @property
    def console(self) -> str:
        """Connection to the console."""
        return f"host={SOCKET} port={self.port} user=pgbouncer dbname=pgbouncer"

    def tell(self, command: str, seconds: float = 5) -> list[dict[str, str]]:
        """A command on the console. Raises PoolError."""
        return psql(self.console, command, seconds=seconds, user="postgres")

    def pause(self, within_s: float, at_most_s: int, whole: bool = True) -> None:
        """Let queries wait. When a transaction is not over within `within_s`, they wait all the same, unless `whole`.

        Raises PoolError when they do not wait; then they go on.
        """
        self._arm(at_most_s)
        try:
            # Who waits on purpose may wait longer than behind an accident.
            self.tell(f"SET query_wait_timeout = {at_most_s + 10}")
            try:
                self.tell(f"PAUSE {self.database}", within_s)
            except Slow:
                if whole:
                    raise
        except PoolError as error:
            self.resume()
            raise PoolError(
                f"The pool did not come to rest within {within_s} s ({error}); it goes on. A transaction takes longer: "
                f"see docs/runbooks/PostgresTransactionTooLong.md, or try again"
            ) from error

    def resume(self) -> None:
        """Let queries go on, then be as impatient as configured; fine when they go on already. Raises PoolError."""
        try:
            self.tell(f"RESUME {self.database}")
        except PoolError as error:
            if "is not paused" not in str(error):
                raise
        deadline = time.monotonic() + DRAINED_S
        # Impatience would hit those who have waited through the pause and come only now to their turn.
        while longest_wait_s(self.queues()) >= 1 and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.tell("RELOAD")
        self._disarm()

    def queues(self) -> list[dict[str, str]]:
        """What the console says of the database's pools, one for each user. Raises PoolError."""
        return [row for row in self.tell("SHOW POOLS") if row["database"] == self.database]

    def asked(self) -> dict[str, int | bool]:
        """How the pool is. Raises PoolError."""
        queues = self.queues()
        (entry,) = (row for row in self.tell("SHOW DATABASES") if row["name"] == self.database)
        return {
            "paused": entry["paused"] == "1",
            "size": int(entry["pool_size"]),
            "working": sum(int(row["sv_active"]) for row in queues),
            "waiting": sum(int(row["cl_waiting"]) for row in queues),
            "longest_wait_s": longest_wait_s(queues),
        }

    def _arm(self, at_most_s: int) -> None:
        self._disarm()
        subprocess.run(
            [
                "systemd-run", "--quiet", "--collect", f"--unit={UNIT}", f"--on-active={at_most_s}",
                "--timer-property=AccuracySec=100ms", "--uid=postgres", "--", "psql", "-Xqw", self.console,
                "-c", f"RESUME {self.database}", "-c", f"\\! sleep {TIMER_DRAINED_S}", "-c", "RELOAD",
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    def _disarm(self) -> None:
        # A timer that has gone off is no longer there.
        subprocess.run(["systemctl", "stop", f"{UNIT}.timer"], check=False, capture_output=True)

    def write(self, user: str, password: str, seconds: float) -> None:
        """A write by way of the pool. Raises PoolError."""
        connection = f"host={SOCKET} port={self.port} user={user} dbname={self.database} connect_timeout=2"
        psql(connection, WRITE, seconds=seconds, password=password)


def acknowledged_by(leader: t.Mapping[str, t.Any], database: str, seconds: float) -> str:
    """Address of the server that acknowledges a write, other than the one before. Raises PoolError after `seconds`."""
    connection = (
        f"host={leader['host']} port={leader['port']} user={leader['user']} dbname={database} connect_timeout=2 "
        f"sslmode=verify-full sslrootcert={leader['ca']}"
    )
    deadline = time.monotonic() + seconds
    last = "nobody was asked"
    threads = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    tries: list[concurrent.futures.Future[list[dict[str, str]]]] = []
    try:
        while time.monotonic() < deadline:
            if len(tries) < AT_ONCE:
                tries.append(threads.submit(psql, connection, WRITE, seconds=HELD_S, password=leader["password"]))
            time.sleep(POLL_S)
            for done in [one for one in tries if one.done()]:
                tries.remove(done)
                try:
                    address = done.result()[0]["host"]
                except PoolError as error:
                    last = str(error)
                    continue
                if address != leader["not"]:
                    return address
                last = f"{address} still leads"
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    raise PoolError(f"No new leader acknowledged a write within {seconds:.0f} s ({last})")


def stops(url: str, ca: str) -> None:
    """Wait until Patroni is about to stop the leader, or has done so. Raises PoolError when it does not."""
    leader = Patroni(url, ca)

    def does() -> bool:
        said = leader.get("/patroni")
        return (said.get("role"), said.get("state")) != ("primary", "running")

    try:
        leader.wait_for("the leader stops", does, STOPS_S)
    except PatroniError as error:
        raise PoolError(f"The pool was not paused, {error}".rstrip(".")) from None


def go_on(pool: Pool, leader: t.Mapping[str, t.Any], seconds: float) -> str:
    """Wait for a new leader, let the pool go on whether there is one or not, and see it work. Raises PoolError."""
    try:
        address = acknowledged_by(leader, pool.database, seconds)
    finally:
        pool.resume()
    deadline = time.monotonic() + WORKS_S
    while True:
        try:
            pool.write(leader["user"], leader["password"], TRY_S)
        except PoolError as error:
            if time.monotonic() > deadline:
                raise PoolError(f"{address} leads, but not through the pool: {error}") from error
            # A pause that met a login stays in the pool until it is lifted once more.
            pool.resume()
        else:
            return address


def look(pool: Pool) -> dict[str, t.Any]:
    """How the pool is: also one that does not answer is an answer."""
    try:
        return {"pool": pool.asked()}
    except PoolError as error:
        return {"why": str(error)}


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["asked", "paused", "resumed", "bridged"], "required": True},
            "database": text,
            "port": {"type": "int", "required": True},
            "within_s": {"type": "float", "default": 2.0},
            "at_most_s": {"type": "int", "default": 20},
            "patroni": {"type": "str"},
            "leader": {
                "type": "dict",
                "options": {
                    "host": text,
                    "port": {"type": "int", "required": True},
                    "user": text,
                    "password": {**text, "no_log": True},
                    "ca": {"type": "path", "required": True},
                    "not": text,
                },
            },
        },
        required_if=[("state", "bridged", ["leader"])],
        supports_check_mode=True,
    )
    params = module.params
    pool = Pool(params["database"], params["port"])
    began, address = time.monotonic(), None
    if params["state"] == "asked":
        module.exit_json(changed=False, **look(pool))
    if module.check_mode:
        module.exit_json(changed=True)
    try:
        if params["state"] == "paused":
            pool.pause(params["within_s"], params["at_most_s"])
        elif params["state"] == "bridged":
            if params["patroni"]:
                stops(params["patroni"], params["leader"]["ca"])
            pool.pause(params["within_s"], params["at_most_s"], whole=False)
            address = go_on(pool, params["leader"], params["at_most_s"] - 5)
        else:
            pool.resume()
    except PoolError as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=True, leader=address, waited_s=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
