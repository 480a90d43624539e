"""What is asked of the copy: each check returns what it has seen, or raises NotProven with what is wrong."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arches_prover.errors import NotProven
from arches_prover.scratch import ask
from arches_prover.settings import DATA, MIB, POSTGRES, SOCKETS, Settings
from arches_prover.store import Backup

# The canary's figures are estimates from samples, and rows may be deleted in the minute after it: a table is whole
# with four fifths of them, less a hundred. What is lost with a file, a table or a partition is more than that. More
# rows than estimated lose nothing: after a failover Postgres counts from zero.
ROWS_SHARE = 0.8
ROWS_SPARE = 100
COUNT = """
SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname, CASE c.relpersistence WHEN 'p' THEN
         (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %I.%I', n.nspname, c.relname),
                                              false, true, '')))[1]::text::bigint END), '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'canary')
"""
CANARY = """
SELECT json_build_object('at', extract(epoch FROM at), 'host', host, 'rows', rows)
FROM canary.beat ORDER BY at DESC LIMIT 1
"""
NEAREST = """
SELECT json_agg(id) FROM
  (SELECT id FROM canary.landmark ORDER BY embedding <-> :'query'::vector LIMIT :limit) AS nearest
"""


@dataclass(frozen=True)
class Check:
    """One question to the copy, and what was seen."""

    name: str
    passed: bool
    why: str


def judge(name: str, check: Callable[[], str]) -> Check:
    """What became of a check, also for the journal."""
    try:
        judged = Check(name, True, check())
    except NotProven as error:
        judged = Check(name, False, str(error))
    print(f"{name}: {'passed' if judged.passed else 'FAILED'}: {judged.why}", flush=True)
    return judged


def all_checks(settings: Settings, backup: Backup, started: float) -> tuple[list[Check], float | None]:
    """Every check, also after one has failed; and the age of the newest canary at the start, in seconds."""
    database = settings.database
    found: dict[str, Any] = {}

    def canary() -> str:
        found.update(newest_canary(database))
        return canary_is_young(settings, started - found["at"], found["host"])

    def wal() -> str:
        segment_bytes = ask(database, "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")
        return wal_is_whole(backup, end_of_wal(DATA / "pg_wal"), segment_bytes)

    checks: dict[str, Callable[[], str]] = {
        "backup": lambda: backup_is_clean(backup),
        "wal": wal,
        "canary": canary,
        "rows": lambda: rows_are_there(ask(database, COUNT), found.get("rows", {})),
        "vector": lambda: landmarks_are_found(settings),
        "structure": lambda: structure_is_sound(settings, backup),
    }
    judged = [judge(name, check) for name, check in checks.items()]
    return judged, round(started - found["at"], 1) if found else None


def backup_is_clean(backup: Backup) -> str:
    """pgBackRest met no damaged page when it made the backup."""
    if backup.has_errors:
        raise NotProven(f"{backup.label} was made of damaged pages (pgbackrest info)")
    return f"{backup.label} ({backup.kind}), {backup.size_bytes // MIB} MiB"


def wal_is_whole(backup: Backup, end: tuple[int, int], segment_bytes: int) -> str:
    """The copy has replayed the newest segment that the archive had: none was missing, none was cut.

    :param end: timeline and position at which replaying ended.
    """
    timeline, position = end
    per_log = 2**32 // segment_bytes
    wanted_timeline, log, segment = (int(backup.newest_wal[at : at + 8], 16) for at in (0, 8, 16))
    reached = (position - 1) // segment_bytes
    name = f"{timeline:08X}{reached // per_log:08X}{reached % per_log:08X}"
    if timeline != wanted_timeline or reached < log * per_log + segment:
        raise NotProven(
            f"WAL ends in {name}, the archive has {backup.newest_wal}: what is between is missing or damaged"
        )
    return f"replayed up to {name}"


def end_of_wal(folder: Path) -> tuple[int, int]:
    """Timeline and position at which replaying ended, from the history that the copy's promotion wrote."""
    newest = max(folder.glob("*.history"))
    timeline, position = newest.read_text().strip().splitlines()[-1].split()[:2]
    high, _, low = position.partition("/")
    return int(timeline), int(high, 16) << 32 | int(low, 16)


def newest_canary(database: str) -> dict[str, Any]:
    """The newest row of canary.beat: at (seconds since 1970), host, rows (estimates by table)."""
    canary = ask(database, CANARY)
    if canary is None:
        raise NotProven("canary.beat is empty")
    return dict(canary)


def canary_is_young(settings: Settings, age_s: float, host: str) -> str:
    """The age of what was written last is what a loss of all data hosts would have cost."""
    seen = f"the newest canary was {age_s:.0f} s old (from {host})"
    if age_s > settings.rpo_s:
        raise NotProven(f"{seen}, at most {settings.rpo_s} s are allowed: is WAL archived, is the canary written?")
    return seen


def rows_are_there(counts: Mapping[str, int | None], estimates: Mapping[str, int]) -> str:
    """Every table that the canary knew is there with its rows.

    :param counts: rows by table in the copy; None for a table without WAL, which a restore empties.
    """
    if counts and not estimates:
        raise NotProven(f"the canary knew none of the {len(counts)} tables")
    missing = sorted(estimates.keys() - counts.keys())
    few = {
        table: f"{table} has {count} rows, about {estimates[table]} were there"
        for table, count in sorted(counts.items())
        if count is not None and count < ROWS_SHARE * estimates.get(table, 0) - ROWS_SPARE
    }
    if missing or few:
        raise NotProven("; ".join([f"{table} is gone" for table in missing] + list(few.values())))
    return f"{sum(count or 0 for count in counts.values())} rows in {len(counts)} tables"


def landmarks_are_found(settings: Settings) -> str:
    """A search by nearness finds the landmarks in their known order."""
    query, wanted = settings.landmark["query"], settings.landmark["nearest"]
    found = ask(settings.database, NEAREST, query=query, limit=str(len(wanted)))
    if found != wanted:
        raise NotProven(f"nearest to {query} are {found}, not {wanted}")
    return f"nearest to {query} are {found}"


def structure_is_sound(settings: Settings, backup: Backup) -> str:
    """pg_amcheck finds every table and B-tree of every database as it must be."""
    affordable = backup.size_bytes <= settings.heapallindexed_mb * MIB
    deep = ["--heapallindexed"] if affordable else []
    done = subprocess.run(
        [POSTGRES / "pg_amcheck", "-h", SOCKETS, "--all", "--install-missing", "--jobs=2", *deep],
        check=False, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise NotProven(" ".join((done.stdout or done.stderr).split())[:300])
    return "no damage" if affordable else "no damage; too large to look every row up in its indexes"
