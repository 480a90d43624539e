"""The leader of Redis is asked from Sentinel, with the accounts and the TLS of the environment."""

import uuid

import httpx
from api_support.databases import Stack
from api_support.forwarder import Paths
from api_support.server import serving

from lib.waiting import wait_for


def test_limits_are_counted_by_the_leader_that_sentinel_names(stack: Stack, forwarders: Paths, admin_url: str) -> None:
    environment = {
        **forwarders.environment,
        "REDIS_URL": stack.redis_url,
        "REDIS_SENTINELS": stack.sentinels,
        "RATE_LIMIT_LOGIN": "3/1m",
    }
    login = {"email": f"{uuid.uuid4()}@example.org", "password": "wrong password"}
    # Two servers share one count, which a count of their own would not do.
    with serving(**environment) as first, serving(**environment) as second:
        for server in (first, second):
            wait_for("ready", lambda url=server.url: httpx.get(f"{url}/health/ready").status_code == 200, 10)
        statuses = [httpx.post(f"{s.url}/v1/auth/login", json=login).status_code for s in [first, second] * 3]
    assert sorted(statuses) == [401, 401, 401, 429, 429, 429]
