"""Let the queries of this host's pool (PgBouncer) wait while leadership moves, and go on when a leader accepts writes.

    - name: The pool waits
      pool: {state: paused, database: arches, port: 6432}
    - name: The pool goes on with the new leader
      pool:
        state: resumed
        database: arches
        port: 6432
        leader: {host: postgres, port: 5000, user: app, password: ..., ca: /etc/arches/tls/ca.crt, not: 203.0.113.31}

`paused` returns when no transaction runs any more, or fails and lets the pool go on when one takes longer than
`within_s`. `resumed` waits until a write by way of `leader` is acknowledged by another server than `not`, and lets the
pool go on after that; without `leader` at once. Whatever happens to the playbook, systemd lets the pool go on
`at_most_s` after it was paused.

Result: changed, waited_s (until a write was acknowledged), leader (the address that acknowledged it).
"""

from __future__ import annotations

import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

UNIT = "arches-pool-resume"
SOCKET = "/run/postgresql"
# A real change that is replicated before it is acknowledged, and leaves nothing behind.
WRITE = "SELECT host(inet_server_addr()) FROM pg_logical_emit_message(true, 'arches', 'is this written?')"
POLL_S = 0.1


class PoolError(Exception):
    """What is wrong and what to do about it."""


def psql(connection: str, *commands: str, seconds: float, password: str = "", user: str | None = None) -> str:
    """What psql prints, run as a user of the system or as we are. Raises PoolError when a command fails or is slow."""
    line = ["psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", connection]
    line += [word for command in commands for word in ("-c", command)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": password}
    try:
        done = subprocess.run(
            line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(seconds, 0.1),
            check=False, user=user,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PoolError(f"no answer within {seconds:.1f} s") from None
    if done.returncode:
        raise PoolError(done.stderr.strip() or f"psql ended with {done.returncode}")
    return done.stdout.strip()


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

    @property
    def resume_commands(self) -> tuple[str, str]:
        """What lets it go on; the second takes the patience of waiting queries from the configuration again."""
        return f"RESUME {self.database}", "RELOAD"

    def pause(self, within_s: float, at_most_s: int) -> None:
        """Let queries wait. Raises PoolError, and lets them go on, when that is not so within `within_s`."""
        self._arm(at_most_s)
        try:
            # Who waits on purpose may wait longer than behind an accident.
            psql(self.console, f"SET query_wait_timeout = {at_most_s + 10}", seconds=5, user="postgres")
            psql(self.console, f"PAUSE {self.database}", seconds=within_s, user="postgres")
        except PoolError as error:
            self.resume()
            raise PoolError(
                f"The pool did not come to rest within {within_s} s ({error}); it goes on. A transaction takes longer: "
                f"see docs/runbooks/PostgresTransactionTooLong.md, or try again"
            ) from error

    def resume(self) -> None:
        """Let queries go on; fine when they do. Raises PoolError."""
        try:
            psql(self.console, *self.resume_commands, seconds=5, user="postgres")
        except PoolError as error:
            if "not paused" not in str(error):
                raise
            psql(self.console, "RELOAD", seconds=5, user="postgres")
        subprocess.run(["systemctl", "stop", f"{UNIT}.timer"], check=False, capture_output=True)

    def _arm(self, at_most_s: int) -> None:
        subprocess.run(["systemctl", "stop", f"{UNIT}.timer"], check=False, capture_output=True)
        command = ["psql", "-XAtqw", self.console]
        command += [word for resume in self.resume_commands for word in ("-c", resume)]
        subprocess.run(
            [
                "systemd-run", "--quiet", "--collect", f"--unit={UNIT}", f"--on-active={at_most_s}",
                "--timer-property=AccuracySec=100ms", "--uid=postgres", "--", *command,
            ],
            check=True, capture_output=True,
        )  # fmt: skip

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
    while True:
        left = deadline - time.monotonic()
        try:
            address = psql(connection, WRITE, seconds=left, password=leader["password"])
            if address != leader["not"]:
                return address
            last = f"{address} still leads"
        except PoolError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise PoolError(f"No new leader acknowledged a write within {seconds:.0f} s ({last})")
        time.sleep(POLL_S)


def go_on(pool: Pool, leader: t.Mapping[str, t.Any], seconds: float) -> str:
    """Wait for a new leader, let the pool go on whether there is one or not, and see it work. Raises PoolError."""
    deadline = time.monotonic() + seconds
    try:
        address = acknowledged_by(leader, pool.database, seconds)
    finally:
        pool.resume()
    while True:
        try:
            pool.write(leader["user"], leader["password"], deadline + 5 - time.monotonic())
        except PoolError as error:
            if time.monotonic() > deadline + 5:
                raise PoolError(f"{address} leads, but not through the pool: {error}") from error
            # A pause that met a login stays in the pool until it is lifted once more.
            pool.resume()
            time.sleep(POLL_S)
        else:
            return address


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["paused", "resumed"], "required": True},
            "database": text,
            "port": {"type": "int", "required": True},
            "within_s": {"type": "float", "default": 2.0},
            "at_most_s": {"type": "int", "default": 20},
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
    )
    params = module.params
    pool = Pool(params["database"], params["port"])
    began, address = time.monotonic(), None
    try:
        if params["state"] == "paused":
            pool.pause(params["within_s"], params["at_most_s"])
        elif params["leader"]:
            address = go_on(pool, params["leader"], params["at_most_s"] - 5)
        else:
            pool.resume()
    except PoolError as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=True, leader=address, waited_s=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
