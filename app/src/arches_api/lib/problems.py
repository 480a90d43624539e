"""Errors as RFC 9457 problem details: every error answer of the API is one of these."""

from typing import Any, cast

import orjson
import structlog
from quart import Quart, Response, request
from werkzeug.exceptions import HTTPException

log = structlog.get_logger()


class Problem(Exception):
    """An answer that is an error. Raise it anywhere below a route.

    `kind` names it for machines (`urn:arches:problem:<kind>`), `detail` tells a person what to do, `extra` are further
    members of the problem object.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str | None = None,
        *,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(f"{status} {kind}")
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra

    def response(self) -> Response:
        """The problem as an HTTP answer."""
        body: dict[str, Any] = {"type": f"urn:arches:problem:{self.kind}", "title": self.title, "status": self.status}
        if self.detail is not None:
            body["detail"] = self.detail
        body.update(self.extra)
        return Response(
            orjson.dumps(body),
            self.status,
            {**self.headers, "Cache-Control": "no-store"},
            content_type="application/problem+json",
        )


def not_found(what: str) -> Problem:
    """404 for something that is not there, or is not the caller's."""
    return Problem(404, "not-found", "Not found", f"There is no such {what}.")


def unavailable(what: str, retry_after: int = 1) -> Problem:
    """503 that promises: nothing has happened, the same request may be sent again."""
    return Problem(
        503,
        "unavailable",
        "Temporarily unavailable",
        f"{what} Nothing was changed; send the request again.",
        headers={"Retry-After": str(retry_after)},
    )


def register_error_handlers(app: Quart) -> None:
    """Turns every exception that leaves a route into a problem."""

    async def on_problem(error: Problem) -> Response:
        return error.response()

    async def on_http_exception(error: HTTPException) -> Response:
        if error.response is not None or error.code is None or error.code < 400:
            return error.get_response()  # type: ignore[return-value]
        headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
        kind = error.name.lower().replace(" ", "-")
        return Problem(error.code, kind, error.name, error.description, headers=headers).response()

    async def on_exception(error: Exception) -> Response:
        log.error("unhandled exception", exc_info=error)
        cast(dict[str, Any], request.scope)["arches"]["error"] = type(error).__name__
        return Problem(500, "internal", "Internal error", "The fault is ours and has been recorded.").response()

    app.register_error_handler(Problem, on_problem)
    app.register_error_handler(HTTPException, on_http_exception)
    app.register_error_handler(Exception, on_exception)
