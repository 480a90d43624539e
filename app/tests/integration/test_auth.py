"""Accounts and tokens on a real database."""

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx
from api_support.databases import execute
from api_support.forwarder import Paths
from api_support.server import Person, Server, assert_problem, serving


def test_the_story(server: Server, person: Person) -> None:
    assert person.tokens["token_type"] == "Bearer"
    assert person.tokens["expires_in"] == 900
    me = person.http.get("/v1/me").json()
    assert me == person.account
    assert set(me) == {"id", "email", "name", "organization_id"}


def test_an_address_registers_once_whatever_its_case(person: Person) -> None:
    account = {"email": person.email.upper(), "password": "another password", "name": "Eve"}
    assert_problem(person.http.post("/v1/auth/register", json=account), 409)


def test_registrations_at_once_make_one_account(server: Server) -> None:
    account = {"email": f"{uuid.uuid4()}@example.org", "password": "correct horse", "name": "Twin"}
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda _: httpx.post(f"{server.url}/v1/auth/register", json=account), range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


def test_wrong_password_and_unknown_address_look_alike(person: Person) -> None:
    wrong = person.http.post("/v1/auth/login", json={"email": person.email, "password": "wrong password"})
    unknown = person.http.post("/v1/auth/login", json={"email": "nobody@example.org", "password": "wrong password"})
    assert assert_problem(wrong, 401) == assert_problem(unknown, 401)


async def test_no_token_and_no_password_is_stored(person: Person, admin_url: str) -> None:
    connection = await asyncpg.connect(admin_url)
    stored = str(await connection.fetch("SELECT users::text, refresh_tokens::text FROM users, refresh_tokens"))
    await connection.close()
    assert person.email in stored and "$argon2id$" in stored
    assert person.password not in stored and person.tokens["refresh_token"] not in stored


def refresh(server: Server, token: str) -> httpx.Response:
    """One exchange."""
    return httpx.post(f"{server.url}/v1/auth/refresh", json={"refresh_token": token}, timeout=30)


def test_a_refresh_token_is_exchanged(server: Server, person: Person) -> None:
    answer = refresh(server, person.tokens["refresh_token"])
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["refresh_token"] != person.tokens["refresh_token"]
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert httpx.get(f"{server.url}/v1/me", headers=headers).json()["email"] == person.email


def test_of_ten_refreshes_at_once_exactly_one_wins_and_the_session_lives(server: Server, person: Person) -> None:
    token = person.tokens["refresh_token"]
    ready = threading.Barrier(10)

    def exchange(_: int) -> httpx.Response:
        ready.wait()
        return refresh(server, token)

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(exchange, range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    winner = next(answer for answer in answers if answer.status_code == 200)
    assert refresh(server, winner.json()["refresh_token"]).status_code == 200


async def test_a_late_reuse_ends_the_session(server: Server, person: Person, admin_url: str) -> None:
    stolen = person.tokens["refresh_token"]
    successor = refresh(server, stolen).json()["refresh_token"]
    await execute(admin_url, "UPDATE refresh_tokens SET used_at = used_at - interval '6 seconds'")
    assert_problem(refresh(server, stolen), 401)
    assert_problem(refresh(server, successor), 401)
    # Another login of the same person goes on.
    assert refresh(server, person.login()["refresh_token"]).status_code == 200


def test_the_predecessor_of_the_predecessor_ends_the_session(server: Server, person: Person) -> None:
    first = person.tokens["refresh_token"]
    second = refresh(server, first).json()["refresh_token"]
    third = refresh(server, second).json()["refresh_token"]
    assert_problem(refresh(server, first), 401)
    assert_problem(refresh(server, third), 401)


async def test_a_session_ends_at_its_time_however_often_it_is_refreshed(
    server: Server, person: Person, admin_url: str
) -> None:
    successor = refresh(server, person.tokens["refresh_token"]).json()["refresh_token"]
    await execute(admin_url, f"UPDATE sessions SET expires_at = now() WHERE user_id = '{person.account['id']}'")
    assert_problem(refresh(server, successor), 401)


def test_unknown_refresh_tokens_and_access_tokens_are_refused(server: Server, person: Person) -> None:
    assert_problem(refresh(server, "x" * 43), 401)
    assert_problem(refresh(server, person.tokens["access_token"][:200]), 401)
    as_access = httpx.get(f"{server.url}/v1/me", headers={"Authorization": f"Bearer {person.tokens['refresh_token']}"})
    assert_problem(as_access, 401)


async def test_of_200_logins_at_once_exactly_the_limit_is_admitted(forwarders: Paths, admin_url: str) -> None:
    # Patient: on a busy machine two hundred at once would be taken for an outage, which has limits of its own.
    environment = {**forwarders.environment, "RATE_LIMIT_LOGIN": "20/1m", "REDIS_TIMEOUT": "30s"}
    login = {"email": f"{uuid.uuid4()}@example.org", "password": "wrong password"}
    with serving(**environment) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=50)) as http:
            answers = await asyncio.gather(*(http.post("/v1/auth/login", json=login) for _ in range(200)))
            statuses = [answer.status_code for answer in answers]
            assert (statuses.count(401), statuses.count(429)) == (20, 180)
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert_problem(refused, 429)
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            # Another address is not affected; a made-up proxy header changes nothing.
            other = await http.post("/v1/auth/login", json={**login, "email": f"{uuid.uuid4()}@example.org"})
            spoofed = await http.post("/v1/auth/login", json=login, headers={"X-Forwarded-For": "203.0.113.9"})
            assert (other.status_code, spoofed.status_code) == (401, 429)


def test_the_meter_refuses_above_its_rate(forwarders: Paths, person: Person) -> None:
    environment = {**forwarders.environment, "RATE_LIMIT_REQUESTS": "10/1m"}
    with serving(**environment) as server:
        statuses = [httpx.get(f"{server.url}/v1/me", headers=person.http.headers).status_code for _ in range(15)]
    assert statuses == [200] * 10 + [429] * 5


def test_secrets_rotate_between_servers(forwarders: Paths, person: Person) -> None:
    old = "tests sign with this and nobody else does"
    with serving(**{**forwarders.environment, "JWT_SECRET": f"{'n' * 40},{old}"}) as server:
        assert httpx.get(f"{server.url}/v1/me", headers=person.http.headers).status_code == 200
