"""Compare rows of a copy of an earlier moment with those of now, and bring them back. Runs where the copy is.

    - name: The missing rows come back
      postgres_rows:
        sockets: /run/arches-copy
        leader: {hosts: [203.0.113.31, 203.0.113.32], port: 5432, ca: ..., user: migrator, password: ...}
        database: arches
        tables: [artifacts, users]
        keys: ""                       # of one table: "a,b" or '[["a", 1], ["b", 2]]'
        overwrite: false               # true: rows that differ become what they were
        apply: false                   # true: bring back; otherwise only say what would be

Who leads is found by asking; rows travel from the copy to the leader, encrypted, and nowhere else. Without `sockets`
there is no copy yet: only names and keys are held against the leader.

Results: impossible (a sentence about names and keys; nothing else without `sockets`), or changed, tables (findings, see
module_utils/row_recovery.py), obstacles, went_along, text (all of it in lines).
"""

from __future__ import annotations

import asyncio
import dataclasses
import typing as t
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import tls_context

NAME = "arches-restore-row"


def told(report: t.Any, applied: bool) -> Iterator[str]:
    """The report in lines. Keys are shown, no other value."""
    for found in report.tables:
        done = f"; {found.brought_back} brought back" if applied else ""
        done += f", {found.overwritten} overwritten" if applied and found.overwritten else ""
        yield (
            f"{found.table}: {found.missing} only then (missing now), {found.different} different, "
            f"{found.only_now} only now, {found.same} the same{done}"
        )
        for kind, words in (("missing", "missing"), ("different", "different"), ("only_now", "only now")):
            if found.sample[kind]:
                more = " ..." if getattr(found, kind) > len(found.sample[kind]) else ""
                yield f"  {words}: {'; '.join(found.sample[kind])}{more}"
        if found.changed:
            columns = ", ".join(f"{column} in {count}" for column, count in found.changed.items())
            yield f"  columns that differ, of {min(found.different, 1000)} rows looked at: {columns}"
        if found.left_out:
            yield f"  columns that only one of the times has, left as they are: {', '.join(found.left_out)}"
    for table, count in report.went_along.items():
        yield f"{table}: {count} rows were deleted along with them; name it in tables, too, and they come back"
    yield from report.obstacles


async def work(params: dict[str, t.Any]) -> t.Any:
    """The report; none without a copy. Raises RecoveryError, asyncpg.PostgresError or OSError."""
    import asyncpg
    from ansible.module_utils.row_recovery import check, recover

    leader, keys = params["leader"], params["keys"]
    now = await asyncpg.connect(
        host=leader["hosts"],
        port=[leader["port"]] * len(leader["hosts"]),
        user=leader["user"],
        password=leader["password"],
        database=params["database"],
        ssl=tls_context(leader["ca"]),
        target_session_attrs="primary",
        server_settings={"application_name": NAME},
        timeout=10,
    )
    try:
        if not params["sockets"]:
            return await check(now, params["tables"], keys)
        past = await asyncpg.connect(host=params["sockets"], user="postgres", database=params["database"])
        try:
            return await recover(
                past, now, params["tables"], keys, overwrite=params["overwrite"], apply=params["apply"]
            )
        finally:
            await past.close()
    finally:
        await now.close()


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "sockets": {"type": "str", "default": ""},
            "leader": {
                "type": "dict",
                "required": True,
                "options": {
                    "hosts": {"type": "list", "elements": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "ca": {"type": "path", "required": True},
                    "user": text,
                    "password": {"type": "str", "required": True, "no_log": True},
                },
            },
            "database": text,
            "tables": {"type": "list", "elements": "str", "required": True},
            "keys": {"type": "str", "default": "", "no_log": False},
            "overwrite": {"type": "bool", "default": False},
            "apply": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    params["apply"] = params["apply"] and not module.check_mode
    try:
        report = asyncio.run(work(params))
    except ImportError:
        module.fail_json(msg="python3-asyncpg is missing on this host. Install it, or run site.yml.")
    except OSError as error:
        module.fail_json(msg=f"No connection to the copy or to a leader: {error}. Run the same command again.")
    except Exception as error:
        # The driver's errors and ours; the driver cannot be imported for naming them here.
        if type(error).__module__.split(".")[0] not in ("asyncpg", "ansible"):
            raise
        # Only the first line: what follows shows rows.
        said = str(error).splitlines()[0]
        if not params["sockets"]:
            module.exit_json(changed=False, impossible=said)
        module.fail_json(msg=said if type(error).__name__ == "RecoveryError" else f"Nothing was changed: {said}")
    if report is None:
        module.exit_json(changed=False, impossible="")
    module.exit_json(
        changed=any(found.brought_back or found.overwritten for found in report.tables),
        text=list(told(report, params["apply"])),
        **dataclasses.asdict(report),
    )


if __name__ == "__main__":
    main()
