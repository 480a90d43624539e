"""Idempotency keys before any database: which routes take them, what is a key, what is remembered of a content."""

import hashlib

import pytest
from api_support.environment import settings_with
from quart import Quart
from quart.typing import TestClientProtocol as Client

from arches_api.app import create_app
from arches_api.blueprints.auth import Registration
from arches_api.lib import idempotency
from arches_api.lib.openapi import document

ACCOUNT = {"email": "ada@example.org", "password": "long enough", "name": "Ada"}
ASKED = Registration(email="ada@example.org", password="long enough", name="Ada")
# They issue secrets, which must not be kept, and repeating them is safe or means something by itself.
WITHOUT = {"login", "refresh"}


def test_every_other_post_takes_a_key_and_says_so(app: Quart) -> None:
    posts = [path["post"] for path in document(app)["paths"].values() if "post" in path]
    keyed = {
        post["operationId"]: post for post in posts if "Idempotency-Key" in {p["name"] for p in post["parameters"]}
    }
    assert set(keyed) == {post["operationId"] for post in posts} - WITHOUT
    for post in keyed.values():
        assert {"400", "409", "422", "504"} <= set(post["responses"])
        assert "Idempotent-Replayed" in post["responses"]["201"]["headers"]
        assert all("Idempotency-Key" in post["responses"][status]["description"] for status in ("400", "409", "422"))


@pytest.mark.parametrize(
    "key", ["a", "x" * 255, '"quoted"', "8e03978e-40d5-43dd-bc93-6894a57f9324", "!#$%&'()*+-./:;<=>?@[]^_`{|}~"]
)
async def test_a_key_is_taken(client: Client, key: str) -> None:
    answer = await client.post("/v1/auth/register", json={}, headers={"Idempotency-Key": key})
    assert (await answer.get_json())["title"] == "Invalid body"  # what is looked at next


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        "x" * 256,
        f'"{"x" * 256}"',
        "two words",
        "a,b",
        '"a',
        'a"',
        'a"b',
        "a\\b",
        '"a";b=1',
        "schlüssel",
        "a\tb",
    ],
)
async def test_what_is_no_key_is_refused(client: Client, key: str) -> None:
    answer = await client.post("/v1/auth/register", json=ACCOUNT, headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert (await answer.get_json())["type"] == "urn:arches:problem:bad-idempotency-key"


async def test_two_keys_are_none(client: Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    answer = await client.post("/v1/auth/register", json=ACCOUNT, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400


def test_a_key_counts_for_one_caller_and_one_path() -> None:
    ids = {
        idempotency._key_id(*place)
        for place in (("a", "b", "/c"), ("x", "b", "/c"), ("a", "x", "/c"), ("a", "b", "/x"))
    }
    assert len(ids) == 4 and idempotency._key_id("a", "b", "/c") in ids


async def fingerprints(secrets: str, asked: Registration = ASKED) -> list[bytes]:
    """As a server with these secrets makes them."""
    async with create_app(settings_with(JWT_SECRET=secrets)).app_context():
        return idempotency._fingerprints(b"key", asked)


async def test_a_fingerprint_is_recognised_after_a_secret_was_replaced() -> None:
    old, new = "o" * 40, "n" * 40
    assert (await fingerprints(old))[0] in await fingerprints(f"{new},{old}")
    assert (await fingerprints(new))[0] not in await fingerprints(old)


async def test_a_fingerprint_is_no_plain_hash_of_a_password() -> None:
    (made,) = await fingerprints("s" * 40)
    content = ASKED.model_dump_json(exclude_unset=True).encode()
    assert made not in {
        hashlib.sha256(x).digest() for x in (content, b"key" + content, b"arches idempotency:key" + content)
    }


async def test_another_password_has_another_fingerprint() -> None:
    other = Registration(email="ada@example.org", password="long enough!", name="Ada")
    assert await fingerprints("s" * 40) != await fingerprints("s" * 40, other)
