"""Whatever is sent as a body or a query: the answer is a problem with a status below 500."""

import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

import pytest
from api_support.environment import settings_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quart import Quart
from quart.typing import TestClientProtocol as Client

from arches_api.app import create_app
from arches_api.lib.tokens import Principal

LOGIN = {"email": "ada@example.org", "password": "long enough"}
JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 100_000 + b"]" * 100_000


async def assert_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = json.loads(await response.get_data())
    assert body["status"] == status
    assert body["type"].startswith("urn:arches:problem:") and body["title"]
    return body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b'{"email": "ada@example.org", "password": "\xff\xfe"}', 400),
        (b'{"email": "ada@example.org", "password": "\\ud800"}', 400),
        (DEEP, 400),
        (b'{"email": ' + DEEP + b', "password": "x"}', 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"1e999999", 422),
        (b'{"email": "ada@example.org"}', 422),
        (b'{"email": "ada@example.org", "password": 12345678}', 422),
        (b'{"email": "ada@example.org", "password": "a\\u0000b"}', 422),
        (b'{"email": "nobody", "password": "long enough"}', 422),
        (b'{"email": "ada@example.org", "password": "long enough", "admin": true}', 422),
        (json.dumps({**LOGIN, "password": "x" * 300}).encode(), 422),
    ],
)
async def test_a_bad_body_is_a_problem(client: Client, body: bytes, status: int) -> None:
    response = await client.post("/v1/auth/login", data=body, headers=JSON)
    await assert_problem(response, status)


async def test_a_problem_names_the_fields_and_repeats_no_secret(client: Client) -> None:
    response = await client.post("/v1/auth/register", json={"email": "ada", "password": "hunter2", "extra": "hunter2"})
    problem = await assert_problem(response, 422)
    assert {error["field"] for error in problem["errors"]} == {"email", "password", "name", "extra"}
    assert "hunter2" not in json.dumps(problem)


async def test_common_passwords_are_refused(client: Client) -> None:
    response = await client.post(
        "/v1/auth/register", json={"email": "ada@example.org", "name": "Ada", "password": "Password123"}
    )
    problem = await assert_problem(response, 422)
    assert [error["field"] for error in problem["errors"]] == ["password"]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
    ],
)
async def test_another_content_type_is_415(client: Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post("/v1/auth/login", data=json.dumps(LOGIN).encode(), headers=headers)
    await assert_problem(response, 415)


async def test_a_body_over_the_limit_is_413(client: Client) -> None:
    body = b'{"email": "' + b"x" * (1 << 20) + b'"}'
    await assert_problem(await client.post("/v1/auth/login", data=body, headers=JSON), 413)


@pytest.mark.parametrize("query", ["", "q=", "q=%00", "q=x&q=y", "q=x&limit=0", "q=x&limit=101", "q=x&limit=ten",
                                   "q=x&offset=3", "q=" + "x" * 1001, "q=%20%20", "q[]=x"])  # fmt: skip
async def test_a_bad_query_is_a_problem(app: Quart, client: Client, query: str) -> None:
    response = await client.get(f"/v1/artifacts/search?{query}", headers=bearer(app))
    await assert_problem(response, 422)


@pytest.mark.parametrize("after", ["x", "AAAA", "/w==", "MjAyNi0xMS0yMyBub3BlCg==", "é",
                                   "OTk5OS0xMi0zMVQyMzo1OTo1OS05OTo5OSAx", "MjAyNi0wMS0wMVQwMDowMDowMCB4"])  # fmt: skip
async def test_a_bad_cursor_is_a_problem(app: Quart, client: Client, after: str) -> None:
    response = await client.get("/v1/artifacts", query_string={"after": after}, headers=bearer(app))
    await assert_problem(response, 422)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/artifacts/", "/v1//me", "/v1/artifacts/not-a-uuid", "/docs/"])
async def test_an_unknown_path_is_a_problem_and_no_redirect(client: Client, path: str) -> None:
    await assert_problem(await client.get(path), 404)


async def test_a_wrong_method_is_a_problem_with_allow(client: Client) -> None:
    response = await client.delete("/v1/auth/login")
    await assert_problem(response, 405)
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer x", "Basic YTpi", "Bearer a.b.c", "Bearer " + "x." * 5000, "Bearer e30.e30."],
)
async def test_a_bad_token_is_401(client: Client, header: str | None) -> None:
    response = await client.get("/v1/me", headers={"Authorization": header} if header is not None else {})
    await assert_problem(response, 401)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def bearer(app: Quart) -> dict[str, str]:
    """A valid token of a user who does not exist."""
    token = app.extensions["arches"].tokens.issue(Principal(uuid4(), uuid4()))
    return {"Authorization": f"Bearer {token}"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=20,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={"email": VALUES | st.emails(), "password": VALUES, "name": VALUES, "refresh_token": VALUES, "x": VALUES},
)


@pytest.fixture(scope="module")
async def started() -> AsyncGenerator[Client]:
    """One application for all examples, whose database is away."""
    async with create_app(settings_with()).test_app() as started_app:
        yield started_app.test_client()


@given(
    body=st.binary(max_size=200)
    | VALUES.map(lambda v: json.dumps(v).encode())
    | NEARLY.map(lambda v: json.dumps(v).encode())
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("path", ["/v1/auth/register", "/v1/auth/login", "/v1/auth/refresh"])
async def test_no_body_is_a_server_error(started: Client, path: str, body: bytes) -> None:
    """A body that is accepted reaches the database, which is away here: 503."""
    response = await started.post(path, data=body, headers=JSON)
    assert response.status_code in (400, 422, 503)
    assert response.content_type == "application/problem+json"
