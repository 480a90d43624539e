"""Wait until a member of the Postgres cluster does its part; on the leader, also make the cluster's contents so.

    - name: Make the cluster what is wanted
      postgres_cluster:
        name: data1
        rest: {url: "https://203.0.113.31:8008", ca: ..., username: ..., password: ...}
        config: {ttl: 20, ...}              # keys of Patroni's dynamic configuration that are ours
        roles: {app: {settings: {...}, member_of: [...]}, ...}
        passwords: {app: ..., ...}          # a role without one cannot log in
        database: {name: arches, owner: owner, writer: app, connect: [app, ...], extensions: [vector]}

Who leads is asked, never told. Dynamic configuration is compared with the live one and patched through the REST
interface; roles, database and rights are compared with the catalogs over the local socket. Passwords are compared with
the stored verifier and sent as one.

Result: changed, role, statements, config (what was patched), pending_restart (this member waits for a restart).
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import NoAnswer
from ansible.module_utils.patroni import REST, Patroni, PatroniError, connect, differences, members
from ansible.module_utils.postgres_roles import (
    Statement,
    content_statements,
    database_statements,
    role_statements,
)


class Session:
    """A superuser's session on the local socket, every statement its own transaction."""

    def __init__(self, database: str) -> None:
        import psycopg2  # Patroni's own driver: it is there wherever Patroni is

        self.connection = psycopg2.connect(host="/run/postgresql", dbname=database, user="postgres", connect_timeout=3)
        self.connection.autocommit = True

    def query(self, sql: str, parameters: t.Sequence[t.Any]) -> list[tuple[t.Any, ...]]:
        """Rows of a question."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def run(self, statement: Statement) -> None:
        """Run a statement that changes something."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement.sql)


def make_contents(params: dict[str, t.Any], check: bool) -> list[str]:
    """Roles, database and rights as wanted; returns the statements, without secrets. Raises psycopg2.Error."""
    database = params["database"]
    shown: list[str] = []

    def apply(session: Session, statements: t.Iterator[Statement]) -> None:
        for statement in statements:
            shown.append(statement.shown)
            if not check:
                session.run(statement)

    session = Session("postgres")
    roles = {role: {**wanted, "password": params["passwords"].get(role)} for role, wanted in params["roles"].items()}
    apply(session, role_statements(session.query, roles))
    apply(session, database_statements(session.query, database["name"], database["owner"], database["connect"]))
    exists = session.query("SELECT 1 FROM pg_database WHERE datname = %s", [database["name"]])
    if exists:
        inner = Session(database["name"])
        apply(inner, content_statements(inner.query, database["owner"], database["writer"], database["extensions"]))
    return shown


def make_config(patroni: Patroni, wanted: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Patch what differs in the dynamic configuration; returns it. Raises PatroniError, NoAnswer or psycopg2.Error."""
    patch = differences(wanted, patroni.get("/config"))
    if not patch or check:
        return patch
    answer = patroni.change("PATCH", "/config", patch)
    if answer.status == 401:
        # The member runs with its former password until the restart that waits for it; the next run patches.
        return patch
    if answer.status != 200:
        raise PatroniError(f"Patroni refuses the new configuration {patch}: {answer.body}")
    parameters = list(patch.get("postgresql", {}).get("parameters") or {})
    only_at_start = Session("postgres").query(
        "SELECT name FROM pg_settings WHERE context = 'postmaster' AND name = ANY(%s)", [parameters]
    )
    if only_at_start:
        wait_until_noticed(patroni, 3 * wanted["loop_wait"] + 2)
    return patch


def wait_until_noticed(patroni: Patroni, seconds: float) -> None:
    """Give every running member time to notice that it has to restart: the play that restarts them asks next.

    None does when the new value is the one that already runs, so the time's end is no error.
    """

    def noticed() -> bool:
        running = [m for m in members(patroni.get("/cluster")) if m["state"] in ("running", "streaming")]
        return all(member.get("pending_restart") for member in running)

    with contextlib.suppress(PatroniError):
        patroni.wait_for("every member knows that it has to restart", noticed, seconds)


def run(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """The module's work and result. Raises PatroniError, NoAnswer or psycopg2.Error."""
    patroni = connect(params["rest"])
    synchronous = params["config"].get("synchronous_mode", False) not in (False, "off")

    def arrived() -> str | None:
        role = patroni.in_place(synchronous)
        if role is None and patroni.get("/patroni").get("state") == "creating replica" and patroni.leader_exists():
            return "copying"  # may take hours; the leader goes on without it
        return role

    quick = params["timeout_s"]
    role = patroni.wait_for(f"{params['name']} takes its place in the cluster", arrived, quick)
    if role == "copying":
        try:
            role = patroni.wait_for("copied", lambda: patroni.in_place(synchronous), quick)
        except PatroniError:
            return {"changed": False, "role": "copying", "statements": [], "config": {}, "pending_restart": False}
    result: dict[str, t.Any] = {"role": role, "statements": [], "config": {}}
    if role == "primary":
        result["statements"] = make_contents(params, check)
        result["config"] = make_config(patroni, params["config"], check)
    result["pending_restart"] = bool(patroni.get("/patroni").get("pending_restart"))
    result["changed"] = bool(result["statements"] or result["config"])
    result["diff"] = [{"prepared": "".join(f"{line}\n" for line in result["statements"])}]
    if result["config"]:
        result["diff"].append({"prepared": f"Patroni's dynamic configuration: {result['config']}\n"})
    return result


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "required": True}
    names = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "name": text,
            "rest": REST,
            "config": {"type": "dict", "required": True},
            "roles": {"type": "dict", "required": True},
            "passwords": {"type": "dict", "required": True, "no_log": True},
            "database": {
                "type": "dict",
                "required": True,
                "options": {"name": text, "owner": text, "writer": text, "connect": names, "extensions": names},
            },
            "timeout_s": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (PatroniError, NoAnswer) as error:
        module.fail_json(msg=str(error))
    except ImportError:
        module.fail_json(msg="python3-psycopg2 is missing on this host. Install the package patroni, which brings it.")
    except Exception as error:
        # The driver's errors; the driver cannot be imported for naming them here.
        if type(error).__module__.split(".")[0] != "psycopg2":
            raise
        module.fail_json(msg=f"PostgreSQL on {module.params['name']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
