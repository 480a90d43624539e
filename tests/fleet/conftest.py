"""Fixtures of the fleet tests: they use the running local fleet and leave it healthy."""

import datetime
from collections.abc import Iterator

import httpx
import pytest

from lib.client import edge_client, register_and_login
from lib.fleet import Fleet, local_fleet
from lib.waiting import wait_for


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The local fleet; it must be running (`make test` brings one up when there is none)."""
    return local_fleet()


@pytest.fixture
def healthy(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, healthy before the test and healthy again after it."""
    wait_for("the fleet is healthy before the test", fleet.healthy, timeout_s=90, interval_s=1)
    started = datetime.datetime.now(datetime.UTC)
    yield fleet
    try:
        wait_for("the fleet is healthy again after the test", fleet.healthy, timeout_s=120, interval_s=1)
    except TimeoutError:
        print(fleet.status()[1])
        for host in fleet.groups["all"]:
            since = f"{started:%Y-%m-%d %H:%M:%S}"
            errors = fleet.ssh(host, f"journalctl --utc --since '{since}' -p warning -n 15 -o cat", check=False)
            print(f"--- {host}\n{errors.stdout or errors.stderr}")
        raise


@pytest.fixture
def api(fleet: Fleet) -> Iterator[httpx.Client]:
    """An HTTPS client of the API through edge1."""
    with edge_client(fleet) as client:
        yield client


@pytest.fixture
def user(api: httpx.Client) -> dict[str, str]:
    """Authorization header of a new user."""
    return register_and_login(api)
