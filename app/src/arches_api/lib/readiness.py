"""Can this process do its work? Cached for a second and time-boxed, so that asking often costs nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..models import schema
from .database import Database
from .drain import Drain
from .redis import RedisLeader

CACHED = 1.0  # seconds
PATIENCE = 1.5  # seconds for all checks together


@dataclass(frozen=True, slots=True)
class Health:
    """What each check said: "ok", or what is wrong."""

    checks: dict[str, str]

    @property
    def ready(self) -> bool:
        return all(state == "ok" for state in self.checks.values())


class Readiness:
    """The checks behind /health/ready."""

    def __init__(self, database: Database, redis: RedisLeader, drain: Drain, *, level: int) -> None:
        """`level` is the newest migration that this release brings along."""
        self._database = database
        self._redis = redis
        self._drain = drain
        self._level = level
        self._lock = asyncio.Lock()
        self._known: Health | None = None
        self._until = 0.0

    async def check(self) -> Health:
        """The state now, at most a second old."""
        async with self._lock:
            if self._known is None or time.monotonic() >= self._until:
                self._known = Health(dict(await asyncio.gather(*map(_boxed, self._checks()))))
                self._until = time.monotonic() + CACHED
            if self._drain.started:
                return Health({**self._known.checks, "draining": "this process is going away"})
            return self._known

    def _checks(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [("postgres", self._postgres), ("redis", self._ping)]

    async def _postgres(self) -> str:
        async with self._database.transaction(wait=PATIENCE / 2) as connection:
            state = await schema.state(connection)
        if not state.writable:
            return "read-only: this is not the leader"
        if state.level < self._level:
            return f"migration level {state.level} is below {self._level}: run `python -m arches_api migrate`"
        if state.requires_code > self._level:
            return f"the database needs a release with migration {state.requires_code}, this one has {self._level}"
        return "ok"

    async def _ping(self) -> str:
        await self._redis.ping()
        return "ok"


async def _boxed(check: tuple[str, Callable[[], Awaitable[str]]]) -> tuple[str, str]:
    name, call = check
    try:
        return name, await asyncio.wait_for(call(), PATIENCE)
    except TimeoutError:
        return name, f"no answer within {PATIENCE} s"
    except Exception as error:
        return name, f"{type(error).__name__}: {error}".splitlines()[0][:200]
