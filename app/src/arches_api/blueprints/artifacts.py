"""Text artifacts: store, read, list, delete, search."""

import base64
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field
from quart import Blueprint, Response
from quart_schema import operation_id, tag_blueprint

from ..lib.access import authenticated
from ..lib.database import Connection
from ..lib.http import Input, Line, Output, Text, answers, body, query, reply
from ..lib.idempotency import Once, idempotent
from ..lib.problems import Problem, not_found
from ..lib.services import services
from ..lib.tokens import Principal
from ..models import artifacts
from ..models.artifacts import Position

blueprint = Blueprint("artifacts", __name__, url_prefix="/v1/artifacts")
tag_blueprint(blueprint, ["Artifacts"])

Limit = Annotated[int, Field(ge=1, le=100)]


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


class NewArtifact(Input):
    """A text with a name."""

    name: Annotated[Line, Field(min_length=1, max_length=200), AfterValidator(_not_blank)]
    text: Annotated[Text, Field(min_length=1, max_length=200_000)]


class Page(Input):
    """`after` is the `next` of the page before."""

    limit: Limit = 20
    after: Annotated[str, Field(max_length=200)] | None = None


class Search(Input):
    """`q` is a question or some words."""

    q: Annotated[Text, Field(min_length=1, max_length=1000), AfterValidator(_not_blank)]
    limit: Limit = 10


class Summary(Output):
    """An artifact without its text. `embedded` turns true when it can be found by meaning."""

    id: UUID
    name: str
    created_at: datetime
    embedded: bool


class Artifact(Summary):
    """An artifact."""

    text: str


class Artifacts(Output):
    """Newest first; `next` is null on the last page."""

    items: list[Summary]
    next: str | None


class Hit(Output):
    """A search result; scores compare within one answer only."""

    id: UUID
    name: str
    created_at: datetime
    score: float


class Hits(Output):
    """Best first. `mode` says how they were found: by meaning, or (while no vector can be had) by words."""

    items: list[Hit]
    mode: Literal["semantic", "text"]


@blueprint.post("")
@operation_id("create_artifact")
@answers(Artifact, 201, 400, 401, 409, 413, 415, 422, 429, 503, 504)
@authenticated
@idempotent
@body(NewArtifact)
async def create(principal: Principal, once: Once, body: NewArtifact) -> Response:
    """Store a text."""
    embedding = await services().embedding_task.now(body.name, body.text)

    async def store(connection: Connection) -> Response:
        stored = await artifacts.create(
            connection,
            organization_id=principal.organization_id,
            user_id=principal.user_id,
            name=body.name,
            text=body.text,
            embedding=embedding,
        )
        return reply(_artifact(stored), 201, {"Location": f"/v1/artifacts/{stored.id}"})

    return await once(str(principal.user_id), body, store)


@blueprint.get("")
@operation_id("list_artifacts")
@answers(Artifacts, 200, 401, 422, 429, 503)
@authenticated
@query(Page)
async def list_(principal: Principal, query: Page) -> Response:
    """List artifacts, newest first."""
    after = artifacts.START if query.after is None else _decode(query.after)
    async with services().database.transaction() as connection:
        found = await artifacts.page(connection, principal.organization_id, after, query.limit + 1)
    shown = found[: query.limit]
    items = [Summary(id=x.id, name=x.name, created_at=x.created_at, embedded=x.embedded) for x in shown]
    return reply(Artifacts(items=items, next=_encode(shown[-1]) if len(found) > query.limit else None))


@blueprint.get("/search")
@operation_id("search_artifacts")
@answers(Hits, 200, 401, 422, 429, 503)
@authenticated
@query(Search)
async def search(principal: Principal, query: Search) -> Response:
    """Find artifacts by meaning.

    While the question cannot be turned into a vector, artifacts are found by their words and `mode` is `text`.
    """
    near = await services().embedding_task.query(query.q)
    organization_id = principal.organization_id
    async with services().database.transaction() as connection:
        if near is None:
            hits = await artifacts.search_words(connection, organization_id, query.q, query.limit)
        elif await services().tenant_sizes.is_large(connection, organization_id):
            hits = await artifacts.search_index(connection, organization_id, near, query.limit)
        else:
            hits = await artifacts.search_exact(connection, organization_id, near, query.limit)
    mode: Literal["semantic", "text"] = "text" if near is None else "semantic"
    services().metrics.searches.labels(mode).inc()
    items = [Hit(id=x.id, name=x.name, created_at=x.created_at, score=round(x.score, 4)) for x in hits]
    return reply(Hits(items=items, mode=mode))


@blueprint.get("/<uuid:artifact_id>")
@operation_id("get_artifact")
@answers(Artifact, 200, 401, 404, 429, 503)
@authenticated
async def get(principal: Principal, artifact_id: UUID) -> Response:
    """Read one artifact."""
    async with services().database.transaction() as connection:
        found = await artifacts.get(connection, principal.organization_id, artifact_id)
    if found is None:
        raise not_found("artifact")
    return reply(_artifact(found))


@blueprint.delete("/<uuid:artifact_id>")
@operation_id("delete_artifact")
@answers(None, 204, 401, 404, 429, 503, 504)
@authenticated
async def delete(principal: Principal, artifact_id: UUID) -> Response:
    """Delete an artifact."""
    async with services().database.transaction() as connection:
        deleted = await artifacts.delete(connection, principal.organization_id, artifact_id)
    if not deleted:
        raise not_found("artifact")
    return Response(b"", 204)


def _artifact(stored: artifacts.Artifact) -> Artifact:
    return Artifact(
        id=stored.id, name=stored.name, created_at=stored.created_at, embedded=stored.embedded, text=stored.text
    )


def _encode(last: artifacts.Summary) -> str:
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()} {last.id}".encode()).decode()


def _decode(cursor: str) -> Position:
    try:
        created_at, _, artifact_id = base64.b64decode(cursor, b"-_", validate=True).decode().partition(" ")
        position = Position(datetime.fromisoformat(created_at), UUID(artifact_id))
        if position.created_at.tzinfo is None:
            raise ValueError("no time zone")
        position.created_at.astimezone()
        return position
    except (ValueError, OverflowError):
        raise Problem(422, "invalid", "Invalid query", "`after` must be the `next` of an earlier answer.") from None
