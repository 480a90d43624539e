"""The migration runner on a real server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from api_support.databases import OWNER, Stack, execute, make_empty

from arches_api import migrate
from arches_api.lib.settings import MigrationSettings
from arches_api.migrate import MigrationError

type Write = Callable[[str, str], None]


@pytest.fixture
async def settings(stack: Stack) -> MigrationSettings:
    """An empty database."""
    return MigrationSettings(await make_empty(stack, f"{stack.name}_migrations"), OWNER)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a migration file."""

    def to(name: str, sql: str) -> None:
        (tmp_path / f"{name}.sql").write_text(sql)

    return to


async def value(settings: MigrationSettings, statement: str) -> object:
    """One value."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_ours_apply_once_and_belong_to_the_owner(settings: MigrationSettings) -> None:
    planned = await migrate.status(settings)
    assert planned.level == 0 and len(planned.pending) == migrate.newest_level()
    done = await migrate.apply(settings)
    assert done.applied == planned.pending and done.level == migrate.newest_level()
    assert (await migrate.apply(settings)).applied == []
    owners = "SELECT array_agg(DISTINCT tableowner::text) FROM pg_tables WHERE schemaname = 'public'"
    assert await value(settings, owners) == [OWNER]
    assert await value(settings, "SELECT has_table_privilege('app', 'artifacts', 'INSERT')") is True
    assert await value(settings, "SELECT has_schema_privilege('app', 'public', 'CREATE')") is False


async def test_runners_at_once_apply_each_file_once(settings: MigrationSettings, write: Write, tmp_path: Path) -> None:
    write("0001_table", "CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 1000)")
    # A runner that waits inside the lock would deadlock with this.
    write("0002_index", "-- no-transaction\nCREATE INDEX CONCURRENTLY t_a ON t (a)")
    results = await asyncio.gather(*(migrate.apply(settings, tmp_path) for _ in range(4)))
    assert sorted(len(result.applied) for result in results) == [0, 0, 0, 2]
    assert await value(settings, "SELECT count(*) FROM t") == 1000


async def test_a_file_that_fails_leaves_nothing(settings: MigrationSettings, write: Write, tmp_path: Path) -> None:
    write("0001_good", "CREATE TABLE good (a int)")
    write("0002_bad", "CREATE TABLE half (a int); SELECT 1 / 0")
    with pytest.raises(MigrationError, match="0002_bad: division by zero"):
        await migrate.apply(settings, tmp_path)
    assert await value(settings, "SELECT to_regclass('half')") is None
    assert (await migrate.status(settings, tmp_path)).pending == ["0002_bad"]
    write("0002_bad", "CREATE TABLE half (a int)")
    assert (await migrate.apply(settings, tmp_path)).applied == ["0002_bad"]


async def test_a_changed_file_is_refused(settings: MigrationSettings, write: Write, tmp_path: Path) -> None:
    write("0001_good", "CREATE TABLE good (a int)")
    await migrate.apply(settings, tmp_path)
    write("0001_good", "CREATE TABLE good (a int, b int)")
    with pytest.raises(MigrationError, match="was changed after it was applied"):
        await migrate.apply(settings, tmp_path)


async def test_an_invalid_index_is_named(settings: MigrationSettings, write: Write, tmp_path: Path) -> None:
    write("0001_table", "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (1)")
    write("0002_index", "-- no-transaction\nCREATE UNIQUE INDEX CONCURRENTLY t_a ON t (a)")
    with pytest.raises(MigrationError, match="could not create unique index"):
        await migrate.apply(settings, tmp_path)
    with pytest.raises(MigrationError, match="run DROP INDEX CONCURRENTLY t_a"):
        await migrate.apply(settings, tmp_path)
    await execute(settings.database_url, "DELETE FROM t", "DROP INDEX CONCURRENTLY t_a")
    assert (await migrate.apply(settings, tmp_path)).applied == ["0002_index"]


async def holding(settings: MigrationSettings, work: Callable[[], Awaitable[object]]) -> object:
    """Runs `work` while a reader keeps a transaction on table t open."""
    reader = await asyncpg.connect(settings.database_url)
    transaction = reader.transaction()
    await transaction.start()
    await reader.fetch("SELECT a FROM t")
    try:
        return await work()
    finally:
        await transaction.rollback()
        await reader.close()


async def test_a_lock_that_does_not_come_holds_up_nobody(
    settings: MigrationSettings, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(migrate, "TRY_PAUSE", 0.05)
    monkeypatch.setattr(migrate, "TRIES", 3)
    write("0001_table", "CREATE TABLE t (a int)")
    await migrate.apply(settings, tmp_path)
    write("0002_column", "ALTER TABLE t ADD COLUMN b int")

    async def blocked() -> None:
        with pytest.raises(MigrationError, match="no lock in 3 tries"):
            await migrate.apply(settings, tmp_path)
        assert await value(settings, "SELECT count(*) FROM t") == 0

    await holding(settings, blocked)
    assert (await migrate.apply(settings, tmp_path)).applied == ["0002_column"]


async def test_a_lock_that_comes_late_is_waited_for(
    settings: MigrationSettings, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(migrate, "TRY_PAUSE", 0.05)
    write("0001_table", "CREATE TABLE t (a int)")
    await migrate.apply(settings, tmp_path)
    write("0002_column", "ALTER TABLE t ADD COLUMN b int")

    async def start() -> asyncio.Task[migrate.Status]:
        running = asyncio.create_task(migrate.apply(settings, tmp_path))
        refused = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'relation'"
        async with asyncio.timeout(10):
            while not await value(settings, refused):
                pass  # each look is a connection of its own
        return running

    running = await holding(settings, start)
    assert isinstance(running, asyncio.Task)
    assert (await running).applied == ["0002_column"]


async def test_an_index_waits_for_older_transactions_however_long_they_take(
    settings: MigrationSettings, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    write("0001_table", "CREATE TABLE t (a int)")
    await migrate.apply(settings, tmp_path)
    write("0002_index", "-- no-transaction\nCREATE INDEX CONCURRENTLY t_a ON t (a)")
    writer = await asyncpg.connect(settings.database_url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("INSERT INTO t VALUES (1)")
    running = asyncio.create_task(migrate.apply(settings, tmp_path))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND now() - query_start > '1 s'"
    try:
        async with asyncio.timeout(20):
            while not await value(settings, waits):
                assert not running.done(), running
    finally:
        await transaction.rollback()
        await writer.close()
    assert (await running).applied == ["0002_index"]
    assert await value(settings, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_a'::regclass") is True


async def test_a_database_that_is_away_is_one_sentence() -> None:
    nowhere = MigrationSettings("postgres://m:hunter2@127.0.0.1:9/arches", None)
    with pytest.raises(MigrationError, match="no leader of Postgres") as caught:
        await migrate.apply(nowhere, patience=0.5)
    assert "hunter2" not in str(caught.value)
