"""Puts the application together. Nothing is connected before the server starts serving."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from quart import Quart, Response, request

from . import migrate
from .blueprints import artifacts, auth, docs, health
from .lib import openapi
from .lib.access import seen
from .lib.database import Database, DatabaseAway, OutcomeUnknown, problem_of
from .lib.drain import Drain
from .lib.embedding_task import EmbeddingTask
from .lib.embeddings import create_embeddings
from .lib.http import Observed
from .lib.limits import RateLimits
from .lib.metrics import Metrics
from .lib.passwords import Passwords
from .lib.problems import register_error_handlers
from .lib.readiness import Readiness
from .lib.redis import RedisLeader
from .lib.services import EXTENSION, Services, create_limits
from .lib.settings import Settings
from .lib.tenants import TenantSizes
from .lib.tokens import AccessTokens
from .lib.tracing import Tracing


def create_services(settings: Settings) -> Services:
    """Everything a process needs, made but not connected."""
    metrics = Metrics(settings.release)
    tracing = Tracing(settings, metrics)
    database = Database(
        settings.database_url,
        max_connections=settings.database_max_connections,
        wait=settings.database_connection_timeout,
        release=settings.release,
        metrics=metrics,
    )
    redis = RedisLeader(settings, metrics, tracing)
    drain = Drain(metrics)
    embeddings = create_embeddings(settings, tracing)
    return Services(
        settings=settings,
        metrics=metrics,
        tracing=tracing,
        database=database,
        redis=redis,
        limits=RateLimits(redis, metrics),
        **create_limits(settings),
        passwords=Passwords(),
        tokens=AccessTokens(settings.jwt_secrets, settings.jwt_expiry),
        embeddings=embeddings,
        embedding_task=EmbeddingTask(database, embeddings, metrics, tracing, retry=settings.embeddings_retry),
        tenant_sizes=TenantSizes(settings.search_exact_rows),
        readiness=Readiness(database, redis, drain, level=migrate.newest_level()),
        drain=drain,
    )


def create_app(settings: Settings) -> Quart:
    """The ASGI application."""
    app = Quart("arches_api", static_folder=None)
    services = create_services(settings)
    app.extensions[EXTENSION] = services
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    app.config["RESPONSE_TIMEOUT"] = 30
    # A path means itself: no redirects, which clients would follow without their body.
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False

    for module in (auth, artifacts, health, docs):
        app.register_blueprint(module.blueprint)
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    openapi.describe(app, settings.release)
    register_error_handlers(app)

    async def on_database_error(error: DatabaseAway | OutcomeUnknown) -> Response:
        seen()["error"] = type(error).__name__
        return problem_of(error).response()

    app.register_error_handler(DatabaseAway, on_database_error)
    app.register_error_handler(OutcomeUnknown, on_database_error)

    @app.before_request
    async def note_route() -> None:
        if request.url_rule is not None:
            seen()["route"] = request.url_rule.rule

    @app.while_serving
    async def connections() -> AsyncGenerator[None]:
        services.tracing.start()
        await services.database.open()
        task = asyncio.create_task(services.embedding_task.run(), name="embeddings")
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        services.passwords.close()
        await services.embeddings.close()
        await services.redis.close()
        await services.database.close()
        await services.tracing.close()

    app.asgi_app = Observed(  # type: ignore[method-assign]
        app.asgi_app, services.metrics, services.tracing, services.drain, settings.trusted_hops
    )
    return app
