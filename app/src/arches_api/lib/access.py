"""Who may call a route, and how often. Every route says it; a test walks all routes and finds those that do not."""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from quart import Response, request
from quart_schema import security_scheme

from .http import Handler, address_group
from .problems import Problem
from .services import services
from .tokens import InvalidToken, Principal

ACCESS_ATTRIBUTE = "_arches_access"


def authenticated(handler: Handler) -> Handler:
    """Hands the caller to the route as `principal`; 401 without a valid access token, 429 above the user's rate."""

    @wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Response:
        principal = _principal()
        seen()["user"] = str(principal.user_id)
        await services().limits.check(services().request_limit, str(principal.user_id))
        return await handler(*args, principal=principal, **kwargs)

    setattr(wrapper, ACCESS_ATTRIBUTE, "authenticated")
    return cast(Handler, security_scheme([{"bearer": []}])(wrapper))


def limited_by_address(handler: Handler) -> Handler:
    """For routes that anybody may call and that cost something: 429 above the address's rate."""

    @wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Response:
        await services().limits.check(services().address_limit, caller_group())
        return await handler(*args, **kwargs)

    setattr(wrapper, ACCESS_ATTRIBUTE, "limited by address")
    return wrapper


def open_to_all(reason: str) -> Callable[[Handler], Handler]:
    """For routes that need neither a caller nor a limit, with the reason."""

    def decorate(handler: Handler) -> Handler:
        setattr(handler, ACCESS_ATTRIBUTE, f"open: {reason}")
        return handler

    return decorate


def seen() -> dict[str, Any]:
    """What the request's log line will say."""
    return cast(dict[str, Any], cast(dict[str, Any], request.scope)["arches"])


def caller_group() -> str:
    """The address that limits count."""
    return address_group(seen()["client"])


def _principal() -> Principal:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise InvalidToken("no bearer token")
        return services().tokens.verify(token.strip())
    except InvalidToken:
        raise Problem(
            401,
            "unauthorized",
            "Unauthorized",
            "Send `Authorization: Bearer <access token>`; a token lives a few minutes, refresh it.",
            headers={"WWW-Authenticate": 'Bearer realm="arches"'},
        ) from None
