"""PgBouncer, Postgres or Redis away: quick, honest answers without side effects, and no restart needed afterwards."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx
import pytest
from api_support.databases import (
    SLOW_COMMIT,
    Stack,
    artifacts_locked,
    committing,
    count_backends,
    execute,
    make_commits_slow,
    waiting,
)
from api_support.forwarder import Mode, Paths
from api_support.server import Person, Server, assert_problem, serving

from lib.waiting import wait_for

WAIT = 3.0  # DATABASE_CONNECTION_TIMEOUT
SLACK = 1.5  # a busy machine


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.SILENT])
def test_without_the_pooler_the_answer_is_503_within_3_s_and_nothing_happens(
    paths: Paths, server: Server, person: Person, mode: Mode
) -> None:
    person.store("before", "text")
    paths.database.set(mode)
    answer = person.http.post("/v1/artifacts", json={"name": "during", "text": "text"})
    assert_problem(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert WAIT * 0.8 < answer.elapsed.total_seconds() < WAIT + SLACK
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    paths.database.set(Mode.PASS)
    person.store("after", "text")
    assert person.names() == ["after", "before"]


def test_a_short_absence_of_the_pooler_costs_time_only(paths: Paths, person: Person) -> None:
    paths.database.set(Mode.REFUSE)
    heal = threading.Timer(1.0, lambda: paths.database.set(Mode.PASS))
    heal.start()
    assert person.store("patient", "text")["name"] == "patient"
    heal.join()
    assert person.names() == ["patient"]


def test_connections_that_broke_while_idle_are_not_noticed(paths: Paths, new_person: Callable[[], Person]) -> None:
    person = new_person()
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(lambda number: person.store(f"warm {number}", "text"), range(10)))
    paths.database.cut()
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(lambda number: person.store(f"again {number}", "text"), range(10)))
    assert len(person.names()) == 20


async def test_server_connections_that_postgres_closed_are_replaced(stack: Stack, person: Person) -> None:
    """What a failover looks like from here: every server connection of the pooler dies."""
    person.store("before", "text")
    connection = await asyncpg.connect(stack.admin_url)
    await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", stack.name)
    await connection.close()
    answer = await asyncio.to_thread(person.http.post, "/v1/artifacts", json={"name": "after", "text": "text"})
    assert answer.status_code == 201
    assert person.names() == ["after", "before"]


async def test_a_connection_lost_inside_a_transaction_leaves_nothing(
    paths: Paths, person: Person, admin_url: str
) -> None:
    async with artifacts_locked(admin_url):
        posting = asyncio.create_task(
            asyncio.to_thread(person.http.post, "/v1/artifacts", json={"name": "lost", "text": "text"})
        )
        await asyncio.to_thread(wait_for, "the INSERT waits", lambda: waiting(admin_url), 10)
        paths.database.cut()
        assert_problem(await posting, 503)
    assert person.names() == []


async def test_a_client_that_hangs_up_leaves_no_transaction_behind(
    server: Server, person: Person, admin_url: str
) -> None:
    timeout = httpx.Timeout(5, read=0.5)
    async with artifacts_locked(admin_url):
        async with httpx.AsyncClient(base_url=server.url, headers=person.http.headers, timeout=timeout) as http:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    await http.post("/v1/artifacts", json={"name": "gone", "text": "text"})
        await asyncio.to_thread(wait_for, "the INSERTs are cancelled", lambda: not waiting(admin_url), 10)

    def none_is_open() -> bool:
        return asyncio.run(count_backends(admin_url, "state LIKE 'idle in transaction%'")) == 0

    # The API rolls back a moment after the INSERT is cancelled; Postgres itself would only after thirty seconds.
    await asyncio.to_thread(wait_for, "no transaction is open", none_is_open, 10)
    assert person.names() == []
    wait_for("the log says that they left", lambda: server.output().count('"status":499') >= 3, 10)


def test_a_lost_commit_is_not_called_harmless(paths: Paths, stack: Stack, admin_url: str) -> None:
    """The commit waits (a deferred trigger sleeps in it) when the connection breaks: nobody can know, so 504."""
    asyncio.run(make_commits_slow(admin_url))
    with serving(**paths.environment) as server:
        person = Person(server.url, "commit@example.org")
        with ThreadPoolExecutor(1) as threads:
            posting = threads.submit(person.http.post, "/v1/artifacts", json={"name": SLOW_COMMIT, "text": "text"})
            wait_for("the COMMIT runs", lambda: committing(admin_url), 10, interval_s=0.05)
            paths.database.cut()
            problem = assert_problem(posting.result(), 504)
    assert problem["type"] == "urn:arches:problem:outcome-unknown"


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.SILENT])
def test_without_redis_artifacts_work_at_full_speed(paths: Paths, person: Person, mode: Mode) -> None:
    paths.redis.set(mode)
    person.store("first", "text")
    started = time.monotonic()
    for number in range(20):
        person.store(f"artifact {number}", "text")
    # One call may find out, once a second; the others do not wait for it.
    assert time.monotonic() - started < 8
    assert len(person.names()) == 21


def test_without_redis_logins_go_on_under_a_small_limit(paths: Paths, admin_url: str) -> None:
    with serving(**{**paths.environment, "RATE_LIMIT_LOGIN": "10/1m"}) as server:
        person = Person(server.url, "login@example.org")
        paths.redis.set(Mode.REFUSE)
        login = {"email": person.email, "password": person.password}
        statuses = [person.http.post("/v1/auth/login", json=login).status_code for _ in range(5)]
        assert statuses == [200, 200, 429, 429, 429]
        paths.redis.set(Mode.PASS)
        wait_for("Redis counts again", lambda: person.http.post("/v1/auth/login", json=login).status_code == 200, 10)


def ready(server: Server) -> httpx.Response:
    """What readiness says."""
    return httpx.get(f"{server.url}/health/ready", timeout=10)


async def test_who_has_to_wait_for_a_connection_is_counted_and_served(paths: Paths, admin_url: str) -> None:
    one = {"DATABASE_MAX_CONNECTIONS": "1", "DATABASE_CONNECTION_TIMEOUT": "20s"}
    with serving(**{**paths.environment, **one}) as server, ThreadPoolExecutor(3) as threads:
        person = Person(server.url, "queue@example.org")

        def two_wait() -> bool:
            lines = server.metrics().splitlines()
            [waiting_now] = [float(line.split()[1]) for line in lines if line.startswith("arches_database_waiting ")]
            return waiting_now >= 2

        async with artifacts_locked(admin_url):
            body = {"name": "queue", "text": "text"}
            posts = [threads.submit(person.http.post, "/v1/artifacts", json=body) for _ in range(3)]
            await asyncio.to_thread(wait_for, "two wait", two_wait, 10)
        assert [post.result().status_code for post in posts] == [201] * 3


def test_readiness_names_what_is_away(paths: Paths, server: Server) -> None:
    wait_for("ready", lambda: ready(server).status_code == 200, 5)
    paths.redis.set(Mode.REFUSE)
    answer = wait_for("Redis is missed", lambda: (found := ready(server)).status_code == 503 and found, 5)
    checks = assert_problem(answer, 503)["checks"]
    assert checks["postgres"] == "ok" and checks["redis"] != "ok"
    paths.redis.set(Mode.PASS)
    wait_for("ready again", lambda: ready(server).status_code == 200, 5)
    paths.database.set(Mode.SILENT)
    answer = wait_for("Postgres is missed", lambda: (found := ready(server)).status_code == 503 and found, 5)
    assert assert_problem(answer, 503)["checks"]["redis"] == "ok"
    assert answer.elapsed.total_seconds() < 1.5 + SLACK
    assert httpx.get(f"{server.url}/health/live").elapsed.total_seconds() < SLACK


async def test_readiness_knows_the_schema(server: Server, admin_url: str) -> None:
    def says(words: str) -> bool:
        answer = ready(server)
        return answer.status_code == 503 and words in answer.json()["checks"]["postgres"]

    await execute(admin_url, "UPDATE schema_migrations SET version = -version WHERE version > 1")
    await asyncio.to_thread(wait_for, "old schema", lambda: says("is below"), 5)
    await execute(
        admin_url,
        "UPDATE schema_migrations SET version = abs(version)",
        """
        INSERT INTO schema_migrations (version, name, checksum, requires_code, seconds)
        VALUES (900, '0900_contract', '', 900, 0)
        """,
    )
    await asyncio.to_thread(wait_for, "too new a schema", lambda: says("needs a release with migration 900"), 5)
    await execute(admin_url, "UPDATE schema_migrations SET requires_code = 1 WHERE version = 900")
    await asyncio.to_thread(wait_for, "ready", lambda: ready(server).status_code == 200, 5)
    await execute(admin_url, "DELETE FROM schema_migrations WHERE version = 900")


async def test_a_read_only_server_is_not_ready_and_takes_no_writes(
    stack: Stack, person: Person, server: Server
) -> None:
    await execute(stack.admin_url, f'ALTER DATABASE "{stack.name}" SET default_transaction_read_only = on')
    connection = await asyncpg.connect(stack.admin_url)
    await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", stack.name)
    await connection.close()
    try:
        await asyncio.to_thread(wait_for, "not ready", lambda: ready(server).status_code == 503, 5)
        answer = await asyncio.to_thread(person.http.post, "/v1/artifacts", json={"name": "no", "text": "no"})
        assert_problem(answer, 503)
    finally:
        await execute(stack.admin_url, f'ALTER DATABASE "{stack.name}" RESET default_transaction_read_only')
        connection = await asyncpg.connect(stack.admin_url)
        await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", stack.name)
        await connection.close()
    await asyncio.to_thread(wait_for, "ready", lambda: ready(server).status_code == 200, 5)
    assert person.names() == []


async def test_a_column_added_under_a_running_server_breaks_nothing(person: Person, admin_url: str) -> None:
    """PgBouncer keeps prepared statements; one that selects a star would fail until its connections are renewed."""
    for _ in range(10):
        person.store("prepared", "text")
        person.names()
    await execute(admin_url, "ALTER TABLE artifacts ADD COLUMN colour text", "ALTER TABLE users ADD COLUMN age integer")
    for _ in range(10):
        person.store("prepared", "text")
        person.names()
        assert person.http.get("/v1/me").status_code == 200
    assert len(person.names()) == 20
