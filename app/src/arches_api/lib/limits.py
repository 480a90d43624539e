"""Rate limits, counted in Redis by its own clock.

Two counters: a *log* keeps every event, so that "at most N in any window" is exact (logins); a *meter* (GCRA) keeps one
number, for limits that only protect the machine. Without Redis a log falls back to a smaller count in this process
(closed), a meter lets everybody pass (open).
"""

import math
import time
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum

from .metrics import Metrics
from .problems import Problem
from .redis import RedisAway, RedisLeader
from .settings import Rate

# KEYS[1] log; ARGV limit, window in microseconds, a unique name for this event -> {allowed, microseconds to wait}
LOG = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - window))
if redis.call('ZCARD', KEYS[1]) >= limit then
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {0, tonumber(oldest[2]) + window - now}
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
return {1, 0}
"""

# KEYS[1] the time at which the meter is empty; ARGV as above -> {allowed, microseconds to wait}
METER = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local empty = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + window / limit
if empty - now > window then return {0, empty - now - window} end
redis.call('SET', KEYS[1], string.format('%.0f', empty), 'PX', math.ceil((empty - now) / 1000))
return {1, 0}
"""

LOCAL_SHARE = 5  # without Redis a process admits a fifth of the limit, at least one
LOCAL_KEYS = 10_000


class Counting(Enum):
    """How a limit counts, and with it what happens while Redis is away."""

    LOG = "log"
    METER = "meter"


@dataclass(frozen=True, slots=True)
class Limit:
    """A named limit."""

    name: str
    rate: Rate
    counting: Counting


class RateLimits:
    """Checks limits; knows nothing about HTTP but the problem it raises."""

    def __init__(self, redis: RedisLeader, metrics: Metrics) -> None:
        self._redis = redis
        self._metrics = metrics
        self._scripts = {Counting.LOG: redis.script(LOG), Counting.METER: redis.script(METER)}
        self._local = LocalLog()

    async def check(self, limit: Limit, key: str) -> None:
        """Counts one event of `key`. Raises Problem 429 with Retry-After when the limit is reached."""
        try:
            allowed, wait = await self._redis.run(
                self._scripts[limit.counting],
                [f"arches:limit:{limit.name}:{{{key}}}"],
                [limit.rate.limit, int(limit.rate.window * 1e6), uuid.uuid4().hex],
            )
            seconds = wait / 1e6
        except RedisAway:
            if limit.counting is Counting.METER:
                return
            share = Rate(max(1, limit.rate.limit // LOCAL_SHARE), limit.rate.window)
            seconds = self._local.add(f"{limit.name}:{key}", share)
            allowed = seconds == 0
        if allowed:
            return
        self._metrics.limited.labels(limit.name).inc()
        retry_after = max(1, math.ceil(seconds))
        raise Problem(
            429,
            "rate-limited",
            "Too many requests",
            f"Wait {retry_after} s.",
            headers={"Retry-After": str(retry_after)},
        )


class LocalLog:
    """A sliding log in this process, bounded in keys."""

    def __init__(self) -> None:
        self._events: OrderedDict[str, deque[float]] = OrderedDict()

    def add(self, key: str, rate: Rate) -> float:
        """0 when the event was admitted, else the seconds until there is room."""
        now = time.monotonic()
        events = self._events.setdefault(key, deque())
        self._events.move_to_end(key)
        if len(self._events) > LOCAL_KEYS:
            self._events.popitem(last=False)
        while events and events[0] <= now - rate.window:
            events.popleft()
        if len(events) >= rate.limit:
            return events[0] + rate.window - now
        events.append(now)
        return 0.0
