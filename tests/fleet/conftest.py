"""Fixtures of the fleet tests: they use the running local fleet and leave it healthy."""

from collections.abc import Iterator

import httpx
import pytest

from lib.client import edge_client, register_and_login
from lib.fleet import Fleet, local_fleet
from lib.health import Health


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The local fleet; it must be running (`make test` brings one up when there is none)."""
    return local_fleet()


@pytest.fixture(scope="session")
def health(fleet: Fleet) -> Health:
    """What is known of the fleet's health."""
    return Health(fleet)


@pytest.fixture
def healthy(health: Health) -> Iterator[Fleet]:
    """The fleet, healthy before the test and after it; a test that only reads takes `fleet`."""
    with health.kept() as fleet:
        yield fleet


@pytest.fixture
def api(fleet: Fleet) -> Iterator[httpx.Client]:
    """An HTTPS client of the API through edge1."""
    with edge_client(fleet) as client:
        yield client


@pytest.fixture
def user(api: httpx.Client) -> dict[str, str]:
    """Authorization header of a new user."""
    return register_and_login(api)
