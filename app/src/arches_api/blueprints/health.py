"""Liveness and readiness. /health/live touches nothing: a database that is away is no reason to restart a server."""

from quart import Blueprint, Response
from quart_schema import operation_id, tag_blueprint

from ..lib.access import open_to_all
from ..lib.http import Output, answers, reply
from ..lib.problems import Problem
from ..lib.services import services

blueprint = Blueprint("health", __name__, url_prefix="/health")
tag_blueprint(blueprint, ["Health"])


class Live(Output):
    """The process answers."""

    status: str = "ok"
    release: str


class Ready(Output):
    """What each check said."""

    status: str = "ready"
    release: str
    checks: dict[str, str]


@blueprint.get("/live")
@operation_id("live")
@answers(Live)
@open_to_all("touches nothing")
async def live() -> Response:
    """Does the process answer?"""
    return reply(Live(release=services().settings.release))


@blueprint.get("/ready")
@operation_id("ready")
@answers(Ready, 200, 503)
@open_to_all("cached for a second")
async def ready() -> Response:
    """Can it do its work: database writable, Redis there, schema fitting, not going away?"""
    health = await services().readiness.check()
    if not health.ready:
        raise Problem(503, "not-ready", "Not ready", "See checks.", headers={"Retry-After": "1"}, checks=health.checks)
    return reply(Ready(release=services().settings.release, checks=health.checks))
