"""Where Postgres can be restored to; and that everything up to now can be. Runs on a data host.

    - name: What can be done is known
      postgres_target: {state: chosen, at: 2026-01-01T10:00:00+00, leads: true}
    - name: Everything up to now is in the archive
      postgres_target: {state: archived}

`chosen` takes one of `at`, `xid` and `point` (a restore point) and holds it against the backups in the store; `set`
names a backup, and `timeline` another timeline than the present one. `leads` says whether this host's Postgres leads.
`archived` runs on the leader and returns when the store has everything that is committed now.

Results of `chosen`: impossible (a sentence; nothing else then), target (kind, value, backup, timeline), size in bytes,
words (the target, the backup, how much is newer than the target). Of `archived`: segment.
"""

from __future__ import annotations

import datetime
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.patroni_config import ConfigError, PatroniConfig
from ansible.module_utils.pgbackrest import STANZA, StoreError, history, info
from ansible.module_utils.recovery_target import (
    TargetError,
    amount,
    backups,
    choose,
    duration,
    on_timeline,
    show,
)

# How long the archiver may take for what it has at this moment.
ARCHIVE_S = 120
POLL_S = 0.5
# How many transactions are looked at to say what is newer.
COUNTED = 1_000_000


class Leader:
    """Questions to the running leader, on its own socket."""

    def __init__(self) -> None:
        import psycopg2  # Patroni's own driver: it is there wherever Patroni is

        self.connection = psycopg2.connect(
            host="/run/postgresql", dbname="postgres", user="postgres", connect_timeout=5
        )
        self.connection.autocommit = True

    def value(self, sql: str, *parameters: t.Any) -> t.Any:
        """The first column of the first row. Raises psycopg2.Error."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone()[0]

    @property
    def timeline(self) -> int:
        """The timeline that is written now."""
        return int(self.value("SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"))

    def committed_at(self, xid: str) -> datetime.datetime | None:
        """When a transaction was committed; None if that is not known."""
        if not 3 <= int(xid) < int(self.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")):
            return None
        moment: datetime.datetime | None = self.value(
            "SELECT pg_xact_commit_timestamp((%s %% 4294967296)::text::xid)", int(xid)
        )
        return moment

    def transactions_since(self, at: datetime.datetime) -> str:
        """How many transactions were committed since a moment, in words."""
        count = self.value(
            """
            SELECT count(*) FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) AS newest,
                   generate_series(greatest(3, next - %s), next - 1) AS x
             WHERE pg_xact_commit_timestamp((x %% 4294967296)::text::xid) >= %s
            """,
            COUNTED,
            at,
        )
        return f"{count}" if count < COUNTED else f"more than {COUNTED}"


def chosen(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """The target and what is to be said of it. Raises TargetError, StoreError, ConfigError or psycopg2.Error."""
    made = backups(info(), STANZA)
    leader, now = Leader() if params["leads"] else None, datetime.datetime.now(datetime.UTC)
    member = PatroniConfig.read()
    folder = member.folder()
    present = leader.timeline if leader else int(member.control(folder)["Latest checkpoint's TimeLineID"])
    timeline = params["timeline"] or present
    made = on_timeline(made, timeline, history(folder, timeline))
    target = choose(made, params, now, leader.committed_at if leader else lambda xid: None)
    place = "behind" if target.kind == "name" else "just before"
    newer = f"everything that was committed after {show(target.at) if target.at else target.value}"
    if target.at:
        newer += f": the last {duration((now - target.at).total_seconds())}"
    if target.at and leader:
        newer += f", {leader.transactions_since(target.at)} transactions"
    return {
        "target": {"kind": target.kind, "value": target.value, "backup": target.backup.label, "timeline": timeline},
        "size": target.backup.size,
        "words": {
            "target": f"{place} {target.kind} {target.value} on timeline {timeline}",
            "backup": f"backup {target.backup.label} of {show(target.backup.ended)}, {amount(target.backup.size)}",
            "newer": newer,
        },
    }


def archived() -> dict[str, t.Any]:
    """Everything that is committed is in the archive when this returns. Raises TargetError or psycopg2.Error."""
    leader = Leader()
    # A recovery to a time knows that it has arrived by a commit after that time: this one.
    leader.value("SELECT pg_current_xact_id()::text")
    segment = leader.value("SELECT pg_walfile_name(pg_switch_wal())")
    deadline = time.monotonic() + ARCHIVE_S
    while leader.value("SELECT coalesce(left(last_archived_wal, 24) < %s, true) FROM pg_stat_archiver", segment):
        if time.monotonic() > deadline:
            raise TargetError(
                f"{segment} was not archived within {ARCHIVE_S} s. Is the store up? (journalctl -u patroni says what"
                " archive-push met.) Nothing was changed; run the same command again."
            )
        time.sleep(POLL_S)
    return {"segment": segment}


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["chosen", "archived"], "required": True},
            "at": text, "xid": text, "point": text, "set": text,
            "timeline": {"type": "int", "default": 0},
            "leads": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )  # fmt: skip
    choosing = module.params["state"] == "chosen"
    try:
        result = chosen(module.params) if choosing else {} if module.check_mode else archived()
    except (TargetError, StoreError, ConfigError) as error:
        if choosing:
            module.exit_json(changed=False, impossible=str(error))
        module.fail_json(msg=str(error))
    except Exception as error:
        # The driver's errors; the driver cannot be imported for naming them here.
        if type(error).__module__.split(".")[0] != "psycopg2":
            raise
        module.fail_json(msg=f"The leader does not answer on its socket: {error}")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
