"""Postgres through PgBouncer (transaction pooling): connections, transactions, and what their failures mean.

Rules that the pooler sets: no plain SET, no session locks, no LISTEN, explicit column lists only (a statement whose
result type changed stays broken in PgBouncer until its server connections are renewed).
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import structlog

from .metrics import Metrics
from .problems import Problem, unavailable

type Connection = asyncpg.Connection
type Row = asyncpg.Record

log = structlog.get_logger()

# A retry waits this long, growing to the second figure (seconds).
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.25
COMMAND_TIMEOUT = 10.0


class DatabaseAway(Exception):
    """The transaction did not happen: it could not begin, or was lost before COMMIT was sent."""


class OutcomeUnknown(Exception):
    """The connection broke while COMMIT was under way: the transaction may or may not have happened."""


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose release costs no round trip: behind transaction pooling there is no session to reset."""

    def get_reset_query(self) -> str:
        return ""


def is_away(error: BaseException) -> bool:
    """True when the error means "reconnect and try again", not "this statement is wrong"."""
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, asyncpg.DataError)
    return isinstance(
        error,
        OSError  # refused, reset, no such socket; TimeoutError is one too
        | asyncpg.PostgresConnectionError
        | asyncpg.OperatorInterventionError
        | asyncpg.InsufficientResourcesError
        | asyncpg.ReadOnlySQLTransactionError
        | asyncpg.SerializationError
        | asyncpg.DeadlockDetectedError
        | asyncpg.LockNotAvailableError
        | asyncpg.InternalClientError,
    )


class Database:
    """A pool that opens connections when they are needed, so that a server starts while Postgres is away."""

    def __init__(self, url: str, *, max_connections: int, wait: float, release: str, metrics: Metrics) -> None:
        """`wait` is the longest time, in seconds, a transaction may take to begin."""
        self._url = url
        self._max_connections = max_connections
        self._wait = wait
        self._release = release
        self._metrics = metrics
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Prepares the pool; connects to nothing yet."""
        self._pool = pool = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._max_connections,
            timeout=self._wait,
            command_timeout=COMMAND_TIMEOUT,
            connection_class=_PooledConnection,
            server_settings={"application_name": f"arches-api {self._release}"},
        )
        await pool
        self._metrics.observe_pool(pool.get_size, pool.get_idle_size)

    async def close(self, patience: float = 5.0) -> None:
        """Closes the pool; connections that are still busy after `patience` seconds are cut."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), patience)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def transaction(self, *, wait: float | None = None) -> AsyncIterator[Connection]:
        """A transaction that commits when the block ends.

        Until BEGIN is answered nothing has been sent that could have an effect, so that part is tried again for `wait`
        seconds (default: the pool's). Raises DatabaseAway (nothing happened) or OutcomeUnknown (COMMIT was lost);
        errors of single statements pass through.
        """
        connection, transaction = await self._begin(self._wait if wait is None else wait)
        try:
            yield connection
        except BaseException as error:
            await self._abandon(connection, transaction, broken=is_away(error))
            if isinstance(error, Exception) and is_away(error):
                self._metrics.database_errors.inc()
                raise DatabaseAway(_describe(error)) from error
            raise
        # A client that hangs up must not cut a COMMIT in half.
        await asyncio.shield(asyncio.ensure_future(self._commit(connection, transaction)))

    async def _begin(self, wait: float) -> tuple[Connection, Any]:
        deadline = time.monotonic() + wait
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._begin_once(deadline - time.monotonic())
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                if time.monotonic() + pause >= deadline:
                    self._metrics.database_errors.inc()
                    raise DatabaseAway(_describe(error)) from error
            self._metrics.database_retries.inc()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, no secret)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _begin_once(self, patience: float) -> tuple[Connection, Any]:
        async with asyncio.timeout(max(patience, 0)):
            with self._metrics.database_waiting.track_inprogress():
                connection = await self._opened().acquire()
            transaction = connection.transaction()
            try:
                await transaction.start()
            except BaseException:
                await self._drop(connection)
                raise
        return connection, transaction

    async def _commit(self, connection: Connection, transaction: Any) -> None:
        try:
            await transaction.commit()
        except Exception as error:
            await self._drop(connection)
            if isinstance(error, asyncpg.SerializationError):
                raise DatabaseAway(_describe(error)) from error
            if is_away(error):
                self._metrics.database_errors.inc()
                raise OutcomeUnknown(_describe(error)) from error
            raise
        await self._opened().release(connection)

    async def _abandon(self, connection: Connection, transaction: Any, *, broken: bool) -> None:
        if not broken:
            try:
                await asyncio.wait_for(transaction.rollback(), 1.0)
                await self._opened().release(connection)
                return
            except Exception as error:
                log.debug("rollback failed, the connection is dropped", reason=_describe(error))
        # Also a connection that reached a read-only server: asyncpg would keep it.
        await self._drop(connection)

    async def _drop(self, connection: Connection) -> None:
        """Cuts the connection at once: without COMMIT the server rolls back."""
        with suppress(asyncpg.InterfaceError):  # a connection that broke has left the pool by itself
            connection.terminate()
        await self._opened().release(connection)

    def _opened(self) -> Any:
        if self._pool is None:
            raise RuntimeError("open() comes first")
        return self._pool


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def problem_of(error: DatabaseAway | OutcomeUnknown) -> Problem:
    """503 when nothing happened (safe to repeat, also by a proxy), 504 when it may have happened."""
    if isinstance(error, DatabaseAway):
        return unavailable("The database cannot be reached.")
    return Problem(
        504,
        "outcome-unknown",
        "Outcome unknown",
        "The database went away while the change was being stored. Look whether it is there before repeating it; "
        "with an Idempotency-Key just repeat it.",
    )
