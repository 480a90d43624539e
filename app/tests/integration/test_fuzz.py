"""Whatever is sent to a real server with everything behind it: never a 5xx."""

import json
from urllib.parse import quote

import httpx
import pytest
from api_support.server import Person
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)
TEXT = st.text(max_size=300)
ARTIFACT = st.fixed_dictionaries({"name": TEXT | VALUES, "text": TEXT | VALUES}, optional={"id": VALUES})
ACCOUNT = st.fixed_dictionaries(
    {"email": st.emails() | TEXT, "password": TEXT}, optional={"name": TEXT, "refresh_token": TEXT}
)
LENIENT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def check(answer: httpx.Response) -> None:
    """An answer that a client can work with."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code


@given(content=ARTIFACT.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=300))
@LENIENT
def test_any_artifact(person: Person, content: bytes) -> None:
    check(person.http.post("/v1/artifacts", content=content, headers={"Content-Type": "application/json"}))


@given(
    # A header's value has no spaces around it.
    key=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300).map(str.strip)
    | st.sampled_from(["same", '"same"']),
    text=st.sampled_from(["text", "other text"]),
)
@LENIENT
def test_any_idempotency_key(person: Person, key: str, text: str) -> None:
    check(person.http.post("/v1/artifacts", json={"name": "any", "text": text}, headers={"Idempotency-Key": key}))


@given(q=st.text(max_size=200), limit=st.integers() | st.text(max_size=5), after=st.text(max_size=30) | st.none())
@LENIENT
def test_any_query(person: Person, q: str, limit: int | str, after: str | None) -> None:
    check(person.http.get("/v1/artifacts/search", params={"q": q, "limit": limit}))
    check(person.http.get("/v1/artifacts", params={"limit": limit} | ({"after": after} if after is not None else {})))


@pytest.mark.parametrize("path", ["/v1/auth/register", "/v1/auth/login", "/v1/auth/refresh"])
@given(content=ACCOUNT.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=300))
@settings(parent=LENIENT, max_examples=25)
def test_any_account(person: Person, path: str, content: bytes) -> None:
    check(person.http.post(path, content=content, headers={"Content-Type": "application/json"}))


@given(
    path=st.text(max_size=60).map(lambda text: quote(text.encode("utf-8", "surrogatepass"))),
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
    token=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
)
@LENIENT
def test_any_path_and_token(person: Person, path: str, method: str, token: str) -> None:
    check(person.http.request(method, f"/v1/{path}", headers={"Authorization": f"Bearer {token}"}))
