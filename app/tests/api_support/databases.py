"""Test databases on a real server: one migrated template, cloned for each test module."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from arches_api import migrate
from arches_api.lib.settings import MigrationSettings

from .forwarder import Target

OWNER, WRITER = "owner", "app"


def _required(name: str) -> str:
    """The variable, or an error that says how to get it."""
    value = os.environ.get(name, "")
    if not value:
        raise pytest.UsageError(
            f"{name} is not set: these tests need real Postgres, PgBouncer and Redis; run `make test-app`."
        )
    return value


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the real services are.

    `admin_url` reaches Postgres itself as a superuser; `pooler_url` reaches a database whose name ends in `_test`
    through PgBouncer, as the API's role; that database is dropped and made anew.
    """

    admin_url: str
    pooler_url: str
    redis_url: str
    sentinels: str

    @property
    def name(self) -> str:
        """The database that PgBouncer knows."""
        return urlsplit(self.pooler_url).path.strip("/")

    def admin_url_of(self, name: str) -> str:
        """A superuser's URL of a database."""
        return urlsplit(self.admin_url)._replace(path=f"/{name}").geturl()

    def pooler_through(self, port: int) -> str:
        """The API's URL when PgBouncer is forwarded to a local port."""
        parts = urlsplit(self.pooler_url)
        account = parts.netloc.rpartition("@")[0]
        return f"postgres://{account}@127.0.0.1:{port}/{self.name}"

    def redis_through(self, port: int) -> str:
        """The API's URL when Redis is forwarded to a local port."""
        parts = urlsplit(self.redis_url)
        account, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{account}{at}127.0.0.1:{port}").geturl()

    @property
    def pooler(self) -> Target:
        """Where PgBouncer listens."""
        parts = urlsplit(self.pooler_url)
        query = parse_qs(parts.query)
        if "host" not in query:
            return Target(parts.hostname or "127.0.0.1", parts.port or 6432)
        return Target(f"{query['host'][0]}/.s.PGSQL.{query.get('port', ['6432'])[0]}", 0)

    @property
    def redis(self) -> Target:
        """Where Redis listens."""
        parts = urlsplit(self.redis_url)
        return Target(parts.hostname or "127.0.0.1", parts.port or 6379)


# Handed on to servers under test as REDIS_..., where they are set.
REDIS_DETAILS = ("REDIS_MASTER_NAME", "REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD", "REDIS_CA_FILE")


def redis_details() -> dict[str, str]:
    """What else a server needs to know about Redis: names, accounts and the CA of TLS."""
    return {name: value for name in REDIS_DETAILS if (value := os.environ.get(f"ARCHES_TEST_{name}", ""))}


def stack_from_environment() -> Stack:
    """The services that the environment names. Raises UsageError when one is missing."""
    names = ("DATABASE_URL", "POOLER_URL", "REDIS_URL", "REDIS_SENTINELS")
    stack = Stack(*(_required(f"ARCHES_TEST_{name}") for name in names))
    if not stack.name.endswith("_test"):
        raise pytest.UsageError(f"ARCHES_TEST_POOLER_URL names the database {stack.name!r}: it must end in _test")
    return stack


async def execute(url: str, *statements: str) -> None:
    """Runs statements one by one."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def make_empty(stack: Stack, name: str) -> str:
    """A database as the postgres role makes it: extension, owner, rights of the API's role. Returns its URL."""
    await execute(
        stack.admin_url,
        f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
        f'CREATE DATABASE "{name}" OWNER {OWNER}',
    )
    url = stack.admin_url_of(name)
    await execute(
        url,
        "CREATE EXTENSION vector",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {WRITER}",
    )
    return url


async def make_template(stack: Stack) -> str:
    """The name of a database with all migrations applied."""
    name = f"{stack.name}_template"
    url = await make_empty(stack, name)
    await migrate.apply(MigrationSettings(url, OWNER))
    return name


async def clone(stack: Stack, template: str) -> str:
    """Makes the database behind PgBouncer anew; returns its superuser URL."""
    await execute(
        stack.admin_url,
        f'DROP DATABASE IF EXISTS "{stack.name}" WITH (FORCE)',
        f'CREATE DATABASE "{stack.name}" TEMPLATE "{template}" OWNER {OWNER}',
    )
    return stack.admin_url_of(stack.name)


async def count_backends(admin_url: str, condition: str) -> int:
    """How many of the API's connections to the database are as the condition on pg_stat_activity says."""
    connection = await asyncpg.connect(admin_url)
    count: int = await connection.fetchval(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app' AND {condition}"
    )
    await connection.close()
    return count


@asynccontextmanager
async def artifacts_locked(admin_url: str) -> AsyncGenerator[None]:
    """Whoever touches the table waits."""
    connection = await asyncpg.connect(admin_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE artifacts IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


def waiting(admin_url: str) -> int:
    """How many requests wait for a lock; the background, which takes jobs (embedding_task.py), waits for it too.

    Also one whose statement is only being parsed waits: Postgres shows the one before it then, and calls it idle.
    """
    return asyncio.run(count_backends(admin_url, "wait_event_type = 'Lock' AND query NOT LIKE '%FROM claimed JOIN%'"))


SLOW_COMMIT = "slow commit"


async def make_commits_slow(admin_url: str) -> None:
    """From now on the COMMIT of an artifact named SLOW_COMMIT takes four seconds, longer than a retry waits."""
    await execute(
        admin_url,
        """
        CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(4); RETURN NULL; END $$
        """,
        "DROP TRIGGER IF EXISTS slow ON artifacts",
        f"""
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON artifacts DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.name = '{SLOW_COMMIT}') EXECUTE FUNCTION slow()
        """,
    )


def committing(admin_url: str) -> int:
    """How many such COMMITs run."""
    return asyncio.run(count_backends(admin_url, "wait_event = 'PgSleep'"))
