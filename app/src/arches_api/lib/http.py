"""What every route shares: strict input, typed answers, the caller, and what wraps each request."""

import asyncio
import ipaddress
import re
import socket
import time
import unicodedata
import uuid
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, Any, cast

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from opentelemetry.trace import Span
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from quart import Response, request
from quart_schema import document_querystring, document_request, document_response
from werkzeug.exceptions import RequestEntityTooLarge

from .drain import Drain
from .metrics import Metrics
from .problems import Problem
from .tracing import Tracing, answered, trace_id

type Handler = Callable[..., Awaitable[Response]]

BODY_TIMEOUT = 30.0  # seconds for a client to send its body
MAX_ERRORS = 20

log = structlog.get_logger()


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    return value


def _no_control(value: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError("must not contain control characters")
    return value.strip()


# Postgres stores no NUL; a Line is what people read in lists.
Text = Annotated[str, AfterValidator(_no_nul)]
Line = Annotated[str, AfterValidator(_no_control)]


class Input(BaseModel):
    """A request's body or query: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Output(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True)


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str | None = None


def body(model: type[Input]) -> Callable[[Handler], Handler]:
    """Hands the parsed JSON body to the route as `body`; refuses anything else with 400, 413, 415 or 422."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> Response:
            if request.mimetype != "application/json" or request.mimetype_params.get("charset", "utf-8") != "utf-8":
                raise Problem(
                    415, "unsupported-media-type", "Unsupported media type", "Send application/json in UTF-8."
                )
            content = await _read_body()
            try:
                parsed = model.model_validate_json(content)
            except ValidationError as error:
                raise _invalid(error, "body") from None
            return await handler(*args, body=parsed, **kwargs)

        return document_request(model)(wrapper)

    return decorate


def query(model: type[Input]) -> Callable[[Handler], Handler]:
    """Hands the parsed query string to the route as `query`; refuses anything else with 422."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> Response:
            values = request.args.to_dict(flat=False)
            single = {name: items[0] if len(items) == 1 else items for name, items in values.items()}
            try:
                parsed = model.model_validate(single)
            except ValidationError as error:
                raise _invalid(error, "query") from None
            return await handler(*args, query=parsed, **kwargs)

        return document_querystring(model)(wrapper)

    return decorate


def answers(model: type[Output] | None, status: int = 200, *errors: int) -> Callable[[Handler], Handler]:
    """Documents what a route answers; `errors` are the statuses of its problems."""

    def decorate(handler: Handler) -> Handler:
        if model is not None:
            handler = document_response(model, status)(handler)
        for code in errors:
            handler = document_response(ProblemBody, code)(handler)
        return handler

    return decorate


def reply(content: Output, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The model as JSON."""
    return Response(content.model_dump_json(), status, headers, content_type="application/json")


async def _read_body() -> bytes:
    """The whole body. Stops at the limit also when the client does not say how long it is."""
    limit = request.max_content_length or 0
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.body:
                content += chunk
                if len(content) > limit:
                    raise RequestEntityTooLarge()
    except RequestEntityTooLarge:
        raise Problem(413, "too-large", "Body too large", f"Send at most {limit} bytes.") from None
    except TimeoutError:
        raise Problem(408, "timeout", "Request timeout", "The body did not arrive in time.") from None
    return bytes(content)


def _invalid(error: ValidationError, where: str) -> Problem:
    """Names the fields and what is wrong with them; never repeats the values, which may be secrets."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    if any(item["type"] == "json_invalid" for item in found):
        return Problem(400, "malformed-json", "Malformed JSON", found[0]["msg"])
    errors = [
        {"field": ".".join(str(part)[:100] for part in item["loc"]) or where, "message": item["msg"]}
        for item in found[:MAX_ERRORS]
    ]
    return Problem(422, "invalid", f"Invalid {where}", "See errors.", errors=errors)


def client_address(scope: HTTPScope, trusted_hops: int) -> str:
    """The client's IP address, as seen by the outermost of exactly `trusted_hops` proxies of ours.

    Entries of X-Forwarded-For further left were written by the client and mean nothing.
    """
    client = scope.get("client")
    peer = client[0] if client else "127.0.0.1"
    if trusted_hops == 0:
        return peer
    forwarded = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for")
    hops = [hop.strip() for hop in forwarded.split(",")] if forwarded else []
    if len(hops) < trusted_hops:
        return peer
    try:
        return str(ipaddress.ip_address(hops[-trusted_hops]))
    except ValueError:
        return peer


def address_group(address: str) -> str:
    """What an address limit counts: an IPv4 address, or the /64 that an IPv6 client owns."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def _request_id(scope: HTTPScope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and re.fullmatch(rb"[A-Za-z0-9._-]{8,64}", value):
            return value.decode()
    return uuid.uuid4().hex


class Observed:
    """ASGI middleware around everything: ids, a span, host name, one log line, metrics, `Connection: close` at the end.

    Routes find in `request.scope["arches"]` the keys `client` and `request_id`, and put there `route`, `user`, `error`.
    """

    def __init__(self, app: ASGIFramework, metrics: Metrics, tracing: Tracing, drain: Drain, trusted_hops: int) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._drain = drain
        self._trusted_hops = trusted_hops
        self._served_by = socket.gethostname().encode()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        seen: dict[str, Any] = {"client": client_address(scope, self._trusted_hops), "request_id": request_id}
        cast(dict[str, Any], scope)["arches"] = seen
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with self._tracing.request(scope, request_id) as span:
            if (traced := trace_id(span)) is not None:
                structlog.contextvars.bind_contextvars(trace_id=traced)
            await self._observe(scope, receive, send, seen, span, started)

    async def _observe(
        self,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        seen: dict[str, Any],
        span: Span,
        started: float,
    ) -> None:
        request_id: str = seen["request_id"]
        status = 499  # the client left before there was an answer

        async def send_and_note(event: Any) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                headers = [*event.get("headers", []), (b"x-request-id", request_id.encode())]
                headers.append((b"x-served-by", self._served_by))
                if self._drain.started and scope["http_version"] == "1.1":
                    headers.append((b"connection", b"close"))
                event = {**event, "headers": headers}
            await send(event)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, seen, span, status, time.perf_counter() - started)

    def _note(self, scope: HTTPScope, seen: dict[str, Any], span: Span, status: int, seconds: float) -> None:
        route = seen.get("route", "none")
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.latency.labels(method, route).observe(seconds)
        answered(span, method, route, status, seen.get("error"))
        log.info(
            "request",
            method=method,
            route=route,
            path=scope["path"][:200],  # without the query, which may hold what people search for
            status=status,
            ms=round(seconds * 1000, 1),
            client=seen["client"],
            user=seen.get("user"),
        )


KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
