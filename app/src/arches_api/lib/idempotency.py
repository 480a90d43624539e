"""`Idempotency-Key`: a POST that is sent again does nothing again and gets the same answer.

After draft-ietf-httpapi-idempotency-key-header. The answer is committed in the transaction that does the work, so there
is no moment, whoever dies, at which one of the two is there without the other. What failed did nothing: it is not kept,
and the same key may be tried again.
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from typing import Annotated, Any

from pydantic import BaseModel, Field
from quart import Response, request
from quart_schema import document_headers

from ..models import idempotency
from .database import Connection
from .http import Handler, Input
from .problems import Problem
from .services import services

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
KEPT_HEADERS = ("Content-Type", "Location")
# The draft's string in quotes or, as most clients write it, bare. Without commas: two headers in one are not a key.
CHARACTERS = r"[!#-+\x2d-\x5b\x5d-~]{1,255}"
KEY = re.compile(f'"({CHARACTERS})"|({CHARACTERS})')

# Who lost the connection and asks again meets their first try, which mostly ends within these seconds: its answer is
# waited for, between looks that hold none of the pool's connections.
PAUSES_S = (0, 0.05, 0.1, 0.2, 0.4, 0.8)

type Effect = Callable[[Connection], Awaitable[Response]]


class Headers(BaseModel):
    """For the API's description only."""

    idempotency_key: Annotated[
        str,
        Field(
            alias=HEADER,
            min_length=1,
            max_length=255,
            description="A new UUID for each thing to be done, the same one when the request is sent again: it is done "
            f"once and, for 24 hours, answered alike (a repeated answer says `{REPLAYED}: true`).",
        ),
    ]


def idempotent(handler: Handler) -> Handler:
    """Hands `once` to the route, to be called with its effect. 400 for a header that is not a key."""

    @wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Response:
        return await handler(*args, once=Once(_key()), **kwargs)

    return document_headers(Headers)(wrapper)


class Once:
    """Does what a request asks for, unless that has been done for the same key."""

    def __init__(self, key: str | None) -> None:
        """Without a key it is done each time."""
        self._key = key

    async def __call__(self, caller: str, asked: Input, effect: Effect) -> Response:
        """The answer of `effect`, which gets the connection of the transaction that commits both; or its earlier one.

        `caller` is who owns the key: nobody else's matters. `effect` raises whatever did not happen. Raises Problem 409
        (the same key is still being worked on) and 422 (it came with another content).
        """
        if self._key is None:
            async with services().database.transaction() as connection:
                return await effect(connection)
        key_id = _key_id(self._key, caller, request.path)
        for pause in PAUSES_S:
            await asyncio.sleep(pause)
            with suppress(idempotency.InFlight):
                return await _once(key_id, asked, effect)
        raise _in_flight()


async def _once(key_id: bytes, asked: Input, effect: Effect) -> Response:
    """One look at the key, and the work when nobody has begun it. Raises InFlight, and Problem 422."""
    prints = _fingerprints(key_id, asked)
    async with services().database.transaction() as connection:
        earlier = await idempotency.claim(connection, key_id, prints[0])
        if earlier is None:
            response = await effect(connection)
            headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
            body = await response.get_data(as_text=False)
            await idempotency.keep(connection, key_id, response.status_code, headers, body)
            return response
    if earlier.fingerprint not in prints:
        raise _other_content()
    return Response(earlier.body, earlier.status, {**earlier.headers, REPLAYED: "true"})


def _key() -> str | None:
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    match = KEY.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise Problem(
            400,
            "bad-idempotency-key",
            "Bad Idempotency-Key",
            f"Send one {HEADER} of up to 255 visible ASCII characters, without quotes, commas, backslashes: a UUID.",
        )
    return match[1] or match[2]


def _key_id(key: str, caller: str, path: str) -> bytes:
    """Whose key it is, and for what."""
    return hashlib.sha256(f"{key}\n{caller}\n{path}".encode()).digest()


def _fingerprints(key_id: bytes, asked: Input) -> list[bytes]:
    """Of what was asked, whatever its order and spaces. By each secret: one may have replaced another since.

    A plain hash would let a thief of the table guess passwords faster than their own slow hash does.
    """
    content = b"arches idempotency:" + key_id + asked.model_dump_json(exclude_unset=True).encode()
    return [hmac.digest(secret.encode(), content, "sha256") for secret in services().settings.jwt_secrets]


def _in_flight() -> Problem:
    return Problem(
        409,
        "request-in-flight",
        "Request in flight",
        f"The request with this {HEADER} is being worked on: send it again for its answer.",
        headers={"Retry-After": "1"},
    )


def _other_content() -> Problem:
    return Problem(
        422,
        "idempotency-key-reused",
        "Idempotency-Key reused",
        f"This {HEADER} came with another content before: use a new key for each thing to be done.",
    )
