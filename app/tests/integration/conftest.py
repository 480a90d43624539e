"""Real Postgres, PgBouncer and Redis, named by the environment; nothing is skipped without them."""

import asyncio
import itertools
from collections.abc import Callable, Generator

import pytest
from api_support.databases import Stack, clone, make_template, redis_details, stack_from_environment
from api_support.forwarder import Forwarder, Mode, Paths
from api_support.server import Person, Server, serving


def pytest_collection_modifyitems() -> None:
    """One sentence instead of an error for every test."""
    stack_from_environment()


@pytest.fixture(scope="session")
def stack() -> Stack:
    """Where the services are."""
    return stack_from_environment()


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    """A migrated database to clone."""
    return asyncio.run(make_template(stack))


@pytest.fixture(scope="session")
def forwarders(stack: Stack) -> Generator[Paths]:
    """The way to PgBouncer and to Redis."""
    database, redis = Forwarder(stack.pooler), Forwarder(stack.redis)
    environment = {
        "DATABASE_URL": stack.pooler_through(database.port),
        "REDIS_URL": stack.redis_through(redis.port),
        "REDIS_MAX_RETRIES": "1",
        **redis_details(),
    }
    yield Paths(database, redis, environment)
    database.close()
    redis.close()


@pytest.fixture(scope="module")
def admin_url(stack: Stack, template: str) -> str:
    """A superuser's way to this module's fresh database."""
    return asyncio.run(clone(stack, template))


@pytest.fixture
def paths(forwarders: Paths) -> Generator[Paths]:
    """The forwarders, whole again after the test."""
    yield forwarders
    forwarders.database.set(Mode.PASS)
    forwarders.redis.set(Mode.PASS)


@pytest.fixture(scope="module")
def server(forwarders: Paths, admin_url: str) -> Generator[Server]:
    """A server on this module's database."""
    with serving(**forwarders.environment) as running:
        yield running


numbers = itertools.count(1)


@pytest.fixture
def new_person(server: Server) -> Callable[[], Person]:
    """Registers somebody new."""
    return lambda: Person(server.url, f"person-{next(numbers)}@example.org")


@pytest.fixture
def person(new_person: Callable[[], Person]) -> Person:
    """Somebody with an account."""
    return new_person()
