"""A POST with an Idempotency-Key takes effect once, whoever dies meanwhile, and every repetition hears the same."""

import asyncio
import signal
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import asyncpg
import httpx
import pytest
from api_support.databases import (
    SLOW_COMMIT,
    Stack,
    artifacts_locked,
    committing,
    execute,
    make_commits_slow,
    waiting,
)
from api_support.environment import NOWHERE
from api_support.forwarder import Mode, Paths
from api_support.server import Person, Server, assert_problem, listening_socket

from arches_api.app import create_services
from arches_api.lib import embedding_task
from arches_api.lib.settings import load_settings
from lib.waiting import wait_for

type NewPerson = Callable[[], Person]

KEY = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
TEXT = {"name": "once", "text": "text"}


def new_key() -> dict[str, str]:
    """A header that nobody has sent before."""
    return {KEY: str(uuid.uuid4())}


def post(person: Person, key: dict[str, str], content: dict[str, str] | None = None) -> httpx.Response:
    """Stores an artifact."""
    return person.http.post("/v1/artifacts", json=content or TEXT, headers=key)


def until_answered(request: Callable[[], httpx.Response]) -> httpx.Response:
    """What a client does: sends it again, with the same key, while the answer (or nobody) says that it should."""

    def answered() -> httpx.Response | None:
        try:
            answer = request()
        except httpx.TransportError:
            return None
        return None if answer.status_code in (409, 503, 504) else answer

    found = wait_for("the request is answered", answered, 30)
    assert isinstance(found, httpx.Response)
    return found


def test_the_same_request_is_answered_alike_and_does_nothing(person: Person) -> None:
    key = new_key()
    first, second = post(person, key), post(person, key)
    assert first.status_code == second.status_code == 201
    assert second.content == first.content
    for name in ("Location", "Content-Type"):
        assert second.headers[name] == first.headers[name]
    assert REPLAYED not in first.headers and second.headers[REPLAYED] == "true"
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
    assert person.names() == ["once"]
    # Also when what it made is gone.
    person.http.delete(first.headers["Location"])
    assert post(person, key).content == first.content and person.names() == []


def test_quotes_spaces_and_order_make_no_difference(person: Person) -> None:
    key = new_key()
    first = post(person, key)
    headers = {KEY: f'"{key[KEY]}"', "Content-Type": "application/json"}
    second = person.http.post("/v1/artifacts", content=b'{ "text":"text",\n "name":"once"}', headers=headers)
    assert second.content == first.content and second.headers[REPLAYED] == "true"


def test_another_content_is_refused(person: Person) -> None:
    key = new_key()
    first = post(person, key)
    problem = assert_problem(post(person, key, {**TEXT, "text": "other"}), 422)
    assert problem["type"] == "urn:arches:problem:idempotency-key-reused"
    assert post(person, key).content == first.content
    assert person.names() == ["once"]


def test_without_a_key_each_request_counts(person: Person) -> None:
    assert [post(person, {}).status_code for _ in range(2)] == [201, 201]
    assert person.names() == ["once", "once"]


def test_a_key_belongs_to_its_owner_and_its_path(new_person: NewPerson, server: Server) -> None:
    key = new_key()
    answers = [post(new_person(), key), post(new_person(), key)]
    account = {"email": f"{uuid.uuid4()}@example.org", "password": "correct horse", "name": "Ada"}
    answers.append(httpx.post(f"{server.url}/v1/auth/register", json=account, headers=key))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert not any(REPLAYED in answer.headers for answer in answers)


def test_registering_again_with_the_key_is_no_conflict(server: Server) -> None:
    key = new_key()
    account = {"email": f"{uuid.uuid4()}@example.org", "password": "correct horse", "name": "Ada"}

    def register(**changes: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/auth/register", json={**account, **changes}, headers=key, timeout=30)

    first, second = register(), register()
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content and second.headers[REPLAYED] == "true"
    # Whoever knows the key but not the password learns nothing; somebody else's key of the same name is another.
    assert set(assert_problem(register(password="another horse"), 422)) == {"type", "title", "status", "detail"}
    assert register(email=f"{uuid.uuid4()}@example.org").status_code == 201
    key.update(new_key())
    assert assert_problem(register(), 409)["type"] == "urn:arches:problem:email-taken"


def test_what_failed_is_not_kept(paths: Paths, person: Person) -> None:
    key = new_key()
    assert_problem(post(person, key, {"name": "once"}), 422)
    paths.database.set(Mode.REFUSE)
    assert_problem(post(person, key), 503)
    paths.database.set(Mode.PASS)
    answer = post(person, key)
    assert answer.status_code == 201 and REPLAYED not in answer.headers
    taken = {"email": person.email, "password": "correct horse", "name": "Ada"}
    for _ in range(2):
        answer = person.http.post("/v1/auth/register", json=taken, headers=key)
        assert assert_problem(answer, 409)["type"] == "urn:arches:problem:email-taken"


async def test_a_retry_waits_for_its_first_try(person: Person, admin_url: str) -> None:
    """As after a lost connection: the client asks again while what it asked for is being done."""
    key = new_key()
    async with artifacts_locked(admin_url):
        first = asyncio.create_task(asyncio.to_thread(post, person, key))
        await asyncio.to_thread(wait_for, "the first waits", lambda: waiting(admin_url), 10)
        second = asyncio.create_task(asyncio.to_thread(post, person, key))
        done, _ = await asyncio.wait({second}, timeout=0.5)
        assert not done, second.result().text
    assert (await second).status_code == 201 and (await second).content == (await first).content
    assert (await second).headers[REPLAYED] == "true" and REPLAYED not in (await first).headers
    assert person.names() == ["once"]


async def test_in_flight_is_said_soon(person: Person, admin_url: str) -> None:
    key = new_key()
    async with artifacts_locked(admin_url):
        first = asyncio.create_task(asyncio.to_thread(post, person, key))
        await asyncio.to_thread(wait_for, "the first waits", lambda: waiting(admin_url), 10)
        second = await asyncio.to_thread(post, person, key)
        assert assert_problem(second, 409)["type"] == "urn:arches:problem:request-in-flight"
        assert second.headers["Retry-After"] == "1" and 1 < second.elapsed.total_seconds() < 3
        other = asyncio.create_task(asyncio.to_thread(post, person, new_key(), {"name": "other", "text": "text"}))
        await asyncio.to_thread(wait_for, "another key waits too", lambda: waiting(admin_url) == 2, 10)
    assert (await first).status_code == (await other).status_code == 201
    third = await asyncio.to_thread(post, person, key)
    assert third.content == (await first).content and third.headers[REPLAYED] == "true"
    assert sorted(person.names()) == ["once", "other"]


async def fifty(url: str, path: str, content: dict[str, str], headers: dict[str, str]) -> list[httpx.Response]:
    """The same request fifty times at once."""
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        return await asyncio.gather(*(http.post(path, json=content) for _ in range(50)))


def assert_once(answers: list[httpx.Response]) -> None:
    """One did it, the others heard of it or were told to come back."""
    done = [answer for answer in answers if answer.status_code == 201]
    told = [answer for answer in answers if answer.status_code == 409]
    assert len(done) + len(told) == len(answers), {answer.status_code for answer in answers}
    assert sum(REPLAYED not in answer.headers for answer in done) == 1
    assert len({answer.content for answer in done}) == 1
    assert {answer.json()["type"] for answer in told} <= {"urn:arches:problem:request-in-flight"}


async def test_of_fifty_at_once_one_stores(person: Person) -> None:
    for number in range(3):
        name = f"artifact {number}"
        headers = {**person.http.headers, **new_key()}
        answers = await fifty(str(person.http.base_url), "/v1/artifacts", {"name": name, "text": "text"}, headers)
        assert_once(answers)
        assert (await asyncio.to_thread(person.names)).count(name) == 1


async def test_of_fifty_at_once_one_registers(server: Server) -> None:
    account = {"email": f"{uuid.uuid4()}@example.org", "password": "correct horse", "name": "Ada"}
    assert_once(await fifty(server.url, "/v1/auth/register", account, new_key()))


def test_after_a_lost_commit_the_same_key_tells_what_happened(paths: Paths, person: Person, admin_url: str) -> None:
    """As in a failover: the connection breaks while COMMIT is under way, and the client cannot know."""
    asyncio.run(make_commits_slow(admin_url))
    key, content = new_key(), {"name": SLOW_COMMIT, "text": "text"}
    with ThreadPoolExecutor(1) as threads:
        posting = threads.submit(post, person, key, content)
        wait_for("the COMMIT runs", lambda: committing(admin_url), 10, interval_s=0.05)
        paths.database.cut()
        assert_problem(posting.result(), 504)
    assert_problem(post(person, key, content), 409)
    # Whether Postgres went through with it or not: the answer is about what is there.
    answer = until_answered(lambda: post(person, key, content))
    assert person.names() == [SLOW_COMMIT]
    assert person.http.get(answer.headers["Location"]).json() == answer.json()


def test_while_every_connection_of_postgres_dies_nothing_is_done_twice(stack: Stack, person: Person) -> None:
    """What a failover looks like from here, in the middle of requests."""
    keys = {f"artifact {number}": new_key() for number in range(60)}

    def store(name: str) -> httpx.Response:
        return until_answered(lambda: post(person, keys[name], {"name": name, "text": "text"}))

    with ThreadPoolExecutor(10) as threads:
        storing = [threads.submit(store, name) for name in keys]
        for done in (10, 25, 40):
            wait_until_done(storing, done)
            asyncio.run(terminate_all(stack))
        answers = [future.result() for future in storing]
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(person.names()) == sorted(keys)


def wait_until_done(work: list[Future[Any]], count: int) -> None:
    """So many of them are over, the others are under way or wait."""
    wait_for(f"{count} are stored", lambda: sum(one.done() for one in work) >= count, 60, interval_s=0.005)


async def terminate_all(stack: Stack) -> None:
    """Ends every server connection of the pooler."""
    connection = await asyncpg.connect(stack.admin_url)
    await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", stack.name)
    await connection.close()


class Mortal:
    """One server after the other on the same socket."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._listening = listening_socket()
        self._server = self._start()
        self.url = self._server.url

    def _start(self) -> Server:
        server = Server(self._listening, **self._environment)
        server.wait_until_serving()
        return server

    def kill(self) -> None:
        """Ends the process where it stands."""
        self._server.process.send_signal(signal.SIGKILL)
        self._server.process.wait(10)

    def start(self) -> None:
        """The next one."""
        self._server = self._start()

    def close(self) -> None:
        """Ends the process and the socket."""
        if not self._server.exited():
            assert self._server.stop() == 0
        self._listening.close()


@pytest.fixture
def mortal(forwarders: Paths, admin_url: str) -> Generator[Mortal]:
    """A server that may be killed, on a socket that outlives it."""
    found = Mortal(forwarders.environment)
    yield found
    found.close()


def lost(posting: Future[Any]) -> bool:
    """Whether a request ended without an answer."""
    return isinstance(posting.exception(), httpx.TransportError)


async def test_a_process_that_is_killed_before_its_commit_has_done_nothing(mortal: Mortal, admin_url: str) -> None:
    person = await asyncio.to_thread(Person, mortal.url, f"{uuid.uuid4()}@example.org")
    key = new_key()
    async with artifacts_locked(admin_url):
        with ThreadPoolExecutor(1) as threads:
            posting = threads.submit(post, person, key)
            await asyncio.to_thread(wait_for, "the INSERT waits", lambda: waiting(admin_url), 10)
            await asyncio.to_thread(mortal.kill)
            assert lost(posting)
    await asyncio.to_thread(mortal.start)
    answer = await asyncio.to_thread(until_answered, lambda: post(person, key))
    assert answer.status_code == 201 and REPLAYED not in answer.headers
    assert person.names() == ["once"]


def test_a_process_that_is_killed_in_its_commit_has_done_it_once(mortal: Mortal, admin_url: str) -> None:
    asyncio.run(make_commits_slow(admin_url))
    person = Person(mortal.url, f"{uuid.uuid4()}@example.org")
    key, content = new_key(), {"name": SLOW_COMMIT, "text": "text"}
    with ThreadPoolExecutor(1) as threads:
        posting = threads.submit(post, person, key, content)
        wait_for("the COMMIT runs", lambda: committing(admin_url), 10, interval_s=0.05)
        mortal.kill()
        assert lost(posting)
    mortal.start()
    assert until_answered(lambda: post(person, key, content)).status_code == 201
    assert person.names() == [SLOW_COMMIT]


def test_a_process_that_is_killed_anywhere_leaves_no_request_done_twice(mortal: Mortal) -> None:
    """Requests run all the time; the process dies under them several times and is started again."""
    person = Person(mortal.url, f"{uuid.uuid4()}@example.org")
    keys = {f"artifact {number}": new_key() for number in range(100)}

    def store(name: str) -> int:
        with httpx.Client(base_url=mortal.url, headers=person.http.headers, timeout=30) as http:
            return until_answered(
                lambda: http.post("/v1/artifacts", json={"name": name, "text": "text"}, headers=keys[name])
            ).status_code

    with ThreadPoolExecutor(8) as threads:
        storing = [threads.submit(store, name) for name in keys]
        for done in (15, 40, 65):
            wait_until_done(storing, done)
            mortal.kill()
            mortal.start()
        assert {future.result() for future in storing} == {201}
    assert sorted(person.names()) == sorted(keys)


async def test_answers_are_kept_for_a_day(
    person: Person, admin_url: str, forwarders: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = new_key(), new_key()
    for key in (old, young):
        assert (await asyncio.to_thread(post, person, key)).status_code == 201
    await execute(
        admin_url,
        "UPDATE idempotency_keys SET created_at = created_at - interval '23 hours 59 minutes'",
        """
        UPDATE idempotency_keys SET created_at = created_at - interval '2 minutes'
         WHERE id = (SELECT id FROM idempotency_keys ORDER BY created_at DESC OFFSET 1 LIMIT 1)
        """,
    )
    assert (await asyncio.to_thread(post, person, old)).headers[REPLAYED] == "true"
    monkeypatch.setattr(embedding_task, "CLEANUP_EVERY", 0)
    settings = load_settings({**NOWHERE, **forwarders.environment})
    services = create_services(replace(settings, embeddings_retry=0.05))
    await services.database.open()
    work = asyncio.create_task(services.embedding_task.run())
    try:
        answer = await asyncio.to_thread(
            wait_for,
            "the old one is forgotten",
            lambda: REPLAYED not in (found := post(person, old)).headers and found,
            10,
        )
        assert isinstance(answer, httpx.Response) and answer.status_code == 201
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await services.database.close()
    assert (await asyncio.to_thread(post, person, young)).headers[REPLAYED] == "true"
