"""The Redis leader, through Sentinel or directly.

Only what may be lost lives in Redis (rate limits). So this client fails fast, and after a failure leaves Redis alone
for a moment: an outage must not slow every request down.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import ConnectionPool, Redis, Sentinel
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from .metrics import Metrics
from .settings import Settings
from .tracing import Tracing

SOCKET_SHARE = 0.3  # of a call's time, to connect and to answer: time for retries is left
REST = 1.0  # seconds without a call after a failure


class RedisAway(Exception):
    """Redis cannot be reached, or was found away a moment ago."""


class RedisLeader:
    """Calls to the leading Redis, time-boxed; every failure is RedisAway."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._places = asyncio.Semaphore(settings.redis_pool_size)
        self._timeout = settings.redis_timeout
        self._rest_until = 0.0
        self._sentinel, self._client = _connect(settings)
        tracing.redis(self._client)

    def script(self, source: str) -> AsyncScript:
        """A Lua script that survives a failover (it is loaded again where it is missing)."""
        return self._client.register_script(source)

    async def run(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's result. Raises RedisAway."""
        return await self._guarded(lambda: script(keys=keys, args=args))

    async def ping(self) -> None:
        """Raises RedisAway unless the leader answers now."""
        self._rest_until = 0.0
        await self._guarded(self._client.ping)

    async def close(self) -> None:
        """Closes all connections. A server that is slow to answer the farewell is no failure: nothing is lost."""
        clients = [self._client, *(self._sentinel.sentinels if self._sentinel is not None else [])]
        for client in clients:
            with suppress(RedisError, OSError):
                await client.aclose(close_connection_pool=True)

    async def _guarded(self, call: Any) -> Any:
        if time.monotonic() < self._rest_until:
            raise RedisAway("resting after a failure")
        try:
            # The pool raises when it is exhausted, so callers queue here instead.
            async with asyncio.timeout(self._timeout), self._places:
                return await call()
        except (RedisError, OSError) as error:
            self._rest_until = time.monotonic() + REST
            self._metrics.redis_errors.inc()
            raise RedisAway(f"{type(error).__name__}: {error}") from error


def _connect(settings: Settings) -> tuple[Sentinel | None, Redis]:
    url: dict[str, Any] = dict(parse_url(settings.redis_url))
    tls: dict[str, Any] = {}
    if settings.redis_url.startswith("rediss:"):
        tls = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        if settings.redis_ca_file is not None:
            tls["ssl_ca_certs"] = settings.redis_ca_file
    patience = settings.redis_timeout * SOCKET_SHARE
    timeouts = {"socket_timeout": patience, "socket_connect_timeout": patience}
    common: dict[str, Any] = {
        **timeouts,
        "max_connections": settings.redis_pool_size + 1,
        # master_for does not inherit redis-py's default retries.
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), settings.redis_max_retries),
        "retry_on_error": [RedisError],
        "health_check_interval": 15,
    }
    if not settings.redis_sentinels:
        pool = ConnectionPool.from_url(settings.redis_url, **common, **{k: v for k, v in tls.items() if k != "ssl"})
        return None, Redis(connection_pool=pool)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        settings.redis_sentinels,
        sentinel_kwargs={
            **timeouts,
            **tls,
            "username": settings.redis_sentinel_username,
            "password": settings.redis_sentinel_password,
            "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.1), 0),
        },
    )
    account: dict[str, Any] = {key: url[key] for key in ("username", "password", "db") if key in url}
    return sentinel, sentinel.master_for(settings.redis_master_name, **common, **tls, **account)
