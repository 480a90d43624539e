"""What a running server holds, and how routes get at it."""

from dataclasses import dataclass
from typing import cast

from quart import current_app

from .database import Database
from .drain import Drain
from .embedding_task import EmbeddingTask
from .embeddings import Embeddings
from .limits import Counting, Limit, RateLimits
from .metrics import Metrics
from .passwords import Passwords
from .readiness import Readiness
from .redis import RedisLeader
from .settings import Settings
from .tenants import TenantSizes
from .tokens import AccessTokens
from .tracing import Tracing

EXTENSION = "arches"


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that is made once for each process."""

    settings: Settings
    metrics: Metrics
    tracing: Tracing
    database: Database
    redis: RedisLeader
    limits: RateLimits
    login_limit: Limit  # exact, by address and e-mail
    address_limit: Limit  # exact, by address
    request_limit: Limit  # by user; lets pass while Redis is away
    passwords: Passwords
    tokens: AccessTokens
    embeddings: Embeddings
    embedding_task: EmbeddingTask
    tenant_sizes: TenantSizes
    readiness: Readiness
    drain: Drain


def create_limits(settings: Settings) -> dict[str, Limit]:
    """The limits by the names of their fields in Services."""
    return {
        "login_limit": Limit("login", settings.rate_login, Counting.LOG),
        "address_limit": Limit("address", settings.rate_address, Counting.LOG),
        "request_limit": Limit("requests", settings.rate_requests, Counting.METER),
    }


def services() -> Services:
    """The services of the application that handles this request."""
    return cast(Services, current_app.extensions[EXTENSION])
