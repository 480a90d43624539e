"""The migration runner: plain SQL files, applied in order, once, by one runner at a time.

Files are `NNNN_name.sql`. Each runs in a transaction of its own, unless its first line is `-- no-transaction` (then it
holds one statement, such as CREATE INDEX CONCURRENTLY). A line `-- requires-code: N` says that releases whose newest
migration is below N do not work with it (the contracting step of expand/contract).

The runner connects to the leader itself, not through PgBouncer. It polls for its lock: waiting *in* the lock would
deadlock with CREATE INDEX CONCURRENTLY of the runner that holds it.
"""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from .lib.database import Connection, is_away
from .lib.settings import MigrationSettings

DIRECTORY = Path(__file__).parent / "migrations"
LOCK = 4_711_021_133  # any number, the same in every release
LOCK_POLL = 0.25  # seconds
# An ALTER that waits for a lock holds up everybody behind it: give way soon, try again.
LOCK_TIMEOUT = "2s"
# CREATE INDEX CONCURRENTLY waits for older transactions to end and holds up nobody meanwhile; cut off, it leaves an
# invalid index behind.
CONCURRENT_LOCK_TIMEOUT = "10min"
TRIES, TRY_PAUSE = 10, 1.0

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version       integer PRIMARY KEY,
    name          text NOT NULL,
    checksum      text NOT NULL,
    requires_code integer NOT NULL DEFAULT 0,
    applied_at    timestamptz NOT NULL DEFAULT now(),
    seconds       double precision NOT NULL
)
"""


class MigrationError(Exception):
    """The schema cannot be brought up to date. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        return not self.sql.startswith("-- no-transaction\n")

    @property
    def requires_code(self) -> int:
        match = re.search(r"^-- requires-code: (\d+)$", self.sql, re.MULTILINE)
        return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True)
class Status:
    """`level` is the newest applied migration, 0 for none."""

    level: int
    applied: list[str]
    pending: list[str]


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """The files in order. Raises MigrationError for a bad name or a gap in the numbers."""
    found = []
    for number, path in enumerate(sorted(directory.glob("*.sql")), start=1):
        match = re.fullmatch(r"(\d{4})_[a-z0-9_]+\.sql", path.name)
        if match is None or int(match[1]) != number:
            raise MigrationError(f"{path.name}: name it {number:04d}_<what_it_does>.sql, numbers follow each other")
        found.append(Migration(number, path.stem, path.read_text()))
    return found


def newest_level() -> int:
    """The number of the newest migration in this release."""
    return len(read_migrations())


def pending(migrations: list[Migration], applied: dict[int, tuple[str, str]]) -> list[Migration]:
    """The migrations to run; `applied` maps versions to names and checksums.

    Raises MigrationError when a file differs from what was applied, or the database has one that is missing here.
    A database that is ahead of this release is fine: the release was rolled back.
    """
    level = max(applied, default=0)
    known = {migration.version: migration for migration in migrations}
    for version, (name, checksum) in sorted(applied.items()):
        migration = known.get(version)
        if migration is None:
            if version <= len(migrations):
                raise MigrationError(f"the database has migration {name}, this release has no such file: restore it")
        elif migration.checksum != checksum:
            raise MigrationError(
                f"{migration.name}.sql was changed after it was applied (as {name}): restore it, write a new migration"
            )
    late = [
        migration.name for migration in migrations if migration.version < level and migration.version not in applied
    ]
    if late:
        raise MigrationError(f"{late[0]}.sql comes before migration {level}, which is applied: give it the next number")
    return [migration for migration in migrations if migration.version > level]


async def status(settings: MigrationSettings, directory: Path = DIRECTORY) -> Status:
    """What is applied and what would be. Changes nothing. Raises MigrationError."""
    connection = await _connect(settings, patience=10)
    try:
        return _status(read_migrations(directory), await _applied(connection))
    finally:
        await connection.close()


async def apply(settings: MigrationSettings, directory: Path = DIRECTORY, *, patience: float = 60) -> Status:
    """Applies what is pending; `Status.applied` names what this call did.

    `patience` is the longest time, in seconds, to wait for the database and for another runner. Raises MigrationError.
    """
    migrations = read_migrations(directory)
    deadline = time.monotonic() + patience
    connection = await _connect(settings, patience)
    try:
        if settings.role is not None:
            await connection.execute(f'SET ROLE "{settings.role}"')
        await _lock(connection, deadline)
        await connection.execute(CREATE_TABLE)
        todo = pending(migrations, await _applied(connection))
        await _refuse_invalid_indexes(connection)
        for migration in todo:
            await _apply_one(connection, migration)
        await _refuse_invalid_indexes(connection)
        level = _status(migrations, await _applied(connection)).level
        return Status(level, [migration.name for migration in todo], [])
    finally:
        await connection.close()


async def _connect(settings: MigrationSettings, patience: float) -> Connection:
    deadline = time.monotonic() + patience
    while True:
        try:
            return await asyncpg.connect(settings.database_url, timeout=5, statement_cache_size=0)
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            # A leader may be on its way; a wrong password will not get better.
            if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError) or time.monotonic() > deadline:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise MigrationError(f"no leader of Postgres at MIGRATION_DATABASE_URL ({reason})") from None
        await asyncio.sleep(LOCK_POLL)


async def _lock(connection: Connection, deadline: float) -> None:
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
        if time.monotonic() > deadline:
            raise MigrationError("another migration is still running: wait for it, or look at pg_stat_activity")
        await asyncio.sleep(LOCK_POLL)


async def _applied(connection: Connection) -> dict[int, tuple[str, str]]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return {}
    rows = await connection.fetch("SELECT version, name, checksum FROM schema_migrations")
    return {row["version"]: (row["name"], row["checksum"]) for row in rows}


def _status(migrations: list[Migration], applied: dict[int, tuple[str, str]]) -> Status:
    names = [name for _, (name, _) in sorted(applied.items())]
    return Status(max(applied, default=0), names, [migration.name for migration in pending(migrations, applied)])


async def _refuse_invalid_indexes(connection: Connection) -> None:
    """An interrupted CREATE INDEX CONCURRENTLY leaves an index that costs writes and serves no reads."""
    invalid = await connection.fetchval(
        """
        SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
         WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace
         ORDER BY 1 LIMIT 1
        """
    )
    if invalid is not None:
        raise MigrationError(
            f"index {invalid} is invalid (an interrupted build): "
            f"run DROP INDEX CONCURRENTLY {invalid}, then migrate again"
        )


async def _apply_one(connection: Connection, migration: Migration) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            await _run(connection, migration)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if attempt == TRIES:
                raise MigrationError(
                    f"{migration.name}: no lock in {TRIES} tries of {LOCK_TIMEOUT}: "
                    "find the long transaction in pg_stat_activity"
                ) from error
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{migration.name}: {error}") from error
        except Exception as error:
            if not is_away(error):
                raise
            raise MigrationError(f"{migration.name}: the connection broke ({error}): run it again") from error
        await asyncio.sleep(TRY_PAUSE)


async def _run(connection: Connection, migration: Migration) -> None:
    started = time.monotonic()
    patience = LOCK_TIMEOUT if migration.in_transaction else CONCURRENT_LOCK_TIMEOUT
    await connection.execute(f"SET lock_timeout = '{patience}'")
    await connection.execute("SET statement_timeout = 0")
    if not migration.in_transaction:
        await connection.execute(migration.sql)
        await _record(connection, migration, time.monotonic() - started)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await _record(connection, migration, time.monotonic() - started)


async def _record(connection: Connection, migration: Migration, seconds: float) -> None:
    await connection.execute(
        """
        INSERT INTO schema_migrations (version, name, checksum, requires_code, seconds) VALUES ($1, $2, $3, $4, $5)
        """,
        migration.version,
        migration.name,
        migration.checksum,
        migration.requires_code,
        seconds,
    )
