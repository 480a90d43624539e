"""Leaving Redis."""

import pytest
from api_support.environment import settings_with
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeout

from arches_api.lib.metrics import Metrics
from arches_api.lib.redis import RedisLeader
from arches_api.lib.tracing import Tracing


async def test_a_farewell_without_an_answer_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host, a clean stop would end as a failed unit, with the database's connections left open."""
    left = []

    async def slow(client: Redis, **_: object) -> None:
        left.append(client)
        raise RedisTimeout("Timed out closing connection after 0.3")

    settings = settings_with(REDIS_SENTINELS="203.0.113.1:26379,203.0.113.2:26379")
    monkeypatch.setattr(Redis, "aclose", slow)
    metrics = Metrics("test")
    await RedisLeader(settings, metrics, Tracing(settings, metrics)).close()
    assert len(left) == 3
