"""Tokens, passwords, client addresses, and limits without Redis."""

import time
from typing import Any
from uuid import uuid4

import jwt
import pytest
from api_support.environment import settings_with

from arches_api.app import create_app
from arches_api.lib.http import address_group, client_address
from arches_api.lib.limits import LocalLog
from arches_api.lib.passwords import Passwords
from arches_api.lib.settings import Rate
from arches_api.lib.tokens import AccessTokens, InvalidToken, Principal

OLD, NEW = "o" * 64, "n" * 64
WHO = Principal(uuid4(), uuid4())


def test_a_token_says_who_it_is() -> None:
    tokens = AccessTokens((NEW,), 900)
    assert tokens.verify(tokens.issue(WHO)) == WHO


def test_secrets_are_replaced_without_ending_tokens() -> None:
    token = AccessTokens((OLD,), 900).issue(WHO)
    assert AccessTokens((NEW, OLD), 900).verify(token) == WHO
    with pytest.raises(InvalidToken):
        AccessTokens((NEW,), 900).verify(token)


def forged(**changes: Any) -> str:
    """A token of ours with other claims, header or key."""
    good = AccessTokens((NEW,), 900).issue(WHO)
    header = {"kid": jwt.get_unverified_header(good)["kid"], **changes.pop("header", {})}
    claims = {**jwt.decode(good, options={"verify_signature": False}), **changes.pop("claims", {})}
    claims = {name: value for name, value in claims.items() if value is not None}
    key, algorithm = changes.pop("key", NEW), changes.pop("algorithm", "HS256")
    return jwt.encode(claims, key, algorithm=algorithm, headers=header)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "f" * 64},
        {"algorithm": "HS512"},
        {"algorithm": "none", "key": None},
        {"header": {"kid": "unknown"}},
        {"claims": {"exp": int(time.time()) - 1}},
        {"claims": {"exp": None}},
        {"claims": {"aud": "another-api"}},
        {"claims": {"iss": "somebody"}},
        {"claims": {"use": "refresh"}},
        {"claims": {"sub": "not a uuid"}},
        {"claims": {"org": None}},
        {"claims": {"jti": None}},
    ],
    ids=str,
)
def test_a_forged_token_is_refused(changes: dict[str, Any]) -> None:
    AccessTokens((NEW,), 900).verify(forged())  # the forge itself works
    with pytest.raises(InvalidToken):
        AccessTokens((NEW,), 900).verify(forged(**changes))


async def test_unknown_users_take_as_long_as_wrong_passwords() -> None:
    passwords = Passwords()
    stored = await passwords.hash("right password")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(stored, "right password")
    assert not await passwords.verify(stored, "wrong password")
    assert not await passwords.verify("no hash at all", "right password")

    async def fastest(stored_hash: str | None) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            assert not await passwords.verify(stored_hash, "wrong password")
            times.append(time.perf_counter() - started)
        return min(times)

    wrong, unknown = await fastest(stored), await fastest(None)
    assert unknown > wrong / 3
    passwords.close()


def scope(peer: str, *forwarded: str) -> Any:
    """The part of an ASGI scope that tells the client's address."""
    return {"client": (peer, 1), "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded]}


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (0, ["203.0.113.9"], "10.0.0.11"),
        (1, ["203.0.113.9"], "203.0.113.9"),
        (1, ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (1, ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (2, ["198.51.100.1, 203.0.113.9, 10.0.0.5"], "203.0.113.9"),
        (2, ["203.0.113.9"], "10.0.0.11"),
        (1, [], "10.0.0.11"),
        (1, ["garbage"], "10.0.0.11"),
    ],
)
def test_only_our_own_proxies_are_believed(hops: int, forwarded: list[str], address: str) -> None:
    assert client_address(scope("10.0.0.11", *forwarded), hops) == address


def test_an_ipv6_client_is_counted_by_its_network() -> None:
    assert address_group("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::/64"
    assert address_group("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_group("192.0.2.1") == "192.0.2.1"


def test_the_local_log_admits_the_limit_in_any_window() -> None:
    log = LocalLog()
    assert [log.add("a", Rate(3, 60)) > 0 for _ in range(5)] == [False, False, False, True, True]
    assert log.add("b", Rate(3, 60)) == 0
    assert 59 < log.add("a", Rate(3, 60)) <= 60


async def test_without_redis_logins_are_limited_and_the_rest_is_not() -> None:
    app = create_app(settings_with(RATE_LIMIT_LOGIN="10/1m", RATE_LIMIT_REQUESTS="1/1m"))
    login = {"email": "ada@example.org", "password": "long enough"}
    token = app.extensions["arches"].tokens.issue(WHO)
    async with app.test_app() as started:
        client = started.test_client()
        statuses = [(await client.post("/v1/auth/login", json=login)).status_code for _ in range(4)]
        # A fifth of the limit passes and finds the database away.
        assert statuses == [503, 503, 429, 429]
        headers = {"Authorization": f"Bearer {token}"}
        assert [(await client.get("/v1/me", headers=headers)).status_code for _ in range(3)] == [503, 503, 503]
