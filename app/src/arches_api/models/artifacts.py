"""Artifacts of one organization: store, list, find by meaning or by words."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from ..lib.database import Connection, Row

EF_SEARCH = 100  # candidates of an index search: recall above 0.99 for about a millisecond
MAX_COUNTED = 10_000  # a backlog is a backlog: counting further costs and says nothing new
MAX_TEXT_MATCHES = 1000  # ranking many thousand matches costs a tenth of a second


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector as pgvector's text, with what made it."""

    vector: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Summary:
    """An artifact without its text."""

    id: UUID
    name: str
    created_at: datetime
    embedded: bool


@dataclass(frozen=True, slots=True)
class Artifact(Summary):
    """An artifact with its text."""

    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; `score` is the cosine similarity (meaning) or the text rank (words)."""

    id: UUID
    name: str
    created_at: datetime
    score: float


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the list, newest first."""

    created_at: datetime
    id: UUID


START = Position(datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1))


async def create(
    connection: Connection,
    *,
    organization_id: UUID,
    user_id: UUID,
    name: str,
    text: str,
    embedding: Embedding | None,
) -> Artifact:
    """Stores an artifact; without a vector a job is left for the background task."""
    row = await connection.fetchrow(
        """
        INSERT INTO artifacts
               (organization_id, created_by, name, content, embedding, embedding_model, embedding_dimensions)
        VALUES ($1, $2, $3, $4, $5::text::halfvec, $6, $7)
        RETURNING id, created_at
        """,
        organization_id,
        user_id,
        name,
        text,
        embedding.vector if embedding else None,
        embedding.model if embedding else None,
        embedding.dimensions if embedding else None,
    )
    if embedding is None:
        await connection.execute("INSERT INTO embedding_jobs (artifact_id, run_after) VALUES ($1, now())", row["id"])
    return Artifact(row["id"], name, row["created_at"], embedding is not None, text)


async def get(connection: Connection, organization_id: UUID, artifact_id: UUID) -> Artifact | None:
    """The artifact, or None when there is none or it belongs to others."""
    row = await connection.fetchrow(
        """
        SELECT id, name, created_at, embedding IS NOT NULL AS embedded, content
          FROM artifacts WHERE organization_id = $1 AND id = $2
        """,
        organization_id,
        artifact_id,
    )
    if row is None:
        return None
    return Artifact(row["id"], row["name"], row["created_at"], row["embedded"], row["content"])


async def delete(connection: Connection, organization_id: UUID, artifact_id: UUID) -> bool:
    """True when there was such an artifact."""
    deleted = await connection.fetchval(
        "DELETE FROM artifacts WHERE organization_id = $1 AND id = $2 RETURNING true", organization_id, artifact_id
    )
    return deleted is True


async def page(connection: Connection, organization_id: UUID, after: Position, limit: int) -> list[Summary]:
    """Up to `limit` artifacts, newest first, that come after a position."""
    rows = await connection.fetch(
        """
        SELECT id, name, created_at, embedding IS NOT NULL AS embedded
          FROM artifacts
         WHERE organization_id = $1 AND (created_at, id) < ($2::timestamptz, $3::uuid)
         ORDER BY created_at DESC, id DESC LIMIT $4
        """,
        organization_id,
        after.created_at,
        after.id,
        limit,
    )
    return [Summary(row["id"], row["name"], row["created_at"], row["embedded"]) for row in rows]


async def count_embedded(connection: Connection, organization_id: UUID, enough: int) -> int:
    """How many vectors the organization has; counting stops at `enough`."""
    counted: int = await connection.fetchval(
        """
        SELECT count(*) FROM (
            SELECT FROM artifacts WHERE organization_id = $1 AND embedding IS NOT NULL LIMIT $2) AS counted
        """,
        organization_id,
        enough,
    )
    return counted


async def search_exact(connection: Connection, organization_id: UUID, near: Embedding, limit: int) -> list[Hit]:
    """The nearest by comparing all of the organization's vectors: right for thousands of rows, about 3 ms each 10k.

    MATERIALIZED keeps the planner from the vector index, which sees all organizations and finds few of a small one. The
    vector is a query of its own so that its text is read once: a plan for any values would do so for every row.
    """
    rows = await connection.fetch(
        """
        WITH mine AS MATERIALIZED (
            SELECT id, name, created_at, embedding <=> (SELECT $2::text::halfvec) AS distance
              FROM artifacts
             WHERE organization_id = $1 AND embedding IS NOT NULL AND embedding_model = $3)
        SELECT id, name, created_at, 1 - distance AS score FROM mine ORDER BY distance LIMIT $4
        """,
        organization_id,
        near.vector,
        near.model,
        limit,
    )
    return _hits(rows)


async def search_index(connection: Connection, organization_id: UUID, near: Embedding, limit: int) -> list[Hit]:
    """The nearest by the vector index: right for an organization that owns a large share of all rows.

    Without sorting, the planner has only the index to deliver an order; it goes on (iterative scan) until enough rows
    have passed the filter. That order is only nearly exact, hence the sort here.
    """
    await connection.fetchrow(
        """
        SELECT set_config('hnsw.ef_search', $1, true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
               set_config('enable_sort', 'off', true)
        """,
        str(max(EF_SEARCH, limit)),
    )
    rows = await connection.fetch(
        """
        SELECT id, name, created_at, 1 - (embedding <=> $2::text::halfvec) AS score
          FROM artifacts
         WHERE organization_id = $1 AND embedding_model = $3
         ORDER BY embedding <=> $2::text::halfvec LIMIT $4
        """,
        organization_id,
        near.vector,
        near.model,
        limit,
    )
    return sorted(_hits(rows), key=lambda hit: -hit.score)


async def search_words(connection: Connection, organization_id: UUID, question: str, limit: int) -> list[Hit]:
    """The best of the newest matches by words, for times when no vector can be had."""
    rows = await connection.fetch(
        """
        WITH asked AS (SELECT websearch_to_tsquery('english', $2) AS words),
        matches AS MATERIALIZED (
            SELECT artifacts.id, artifacts.name, artifacts.created_at, artifacts.words
              FROM artifacts, asked
             WHERE artifacts.organization_id = $1 AND artifacts.words @@ asked.words LIMIT $3)
        SELECT matches.id, matches.name, matches.created_at, ts_rank(matches.words, asked.words)::float8 AS score
          FROM matches, asked ORDER BY score DESC, created_at DESC LIMIT $4
        """,
        organization_id,
        question,
        MAX_TEXT_MATCHES,
        limit,
    )
    return _hits(rows)


@dataclass(frozen=True, slots=True)
class Job:
    """An artifact that waits for its vector."""

    artifact_id: UUID
    name: str
    text: str


async def claim_jobs(connection: Connection, limit: int, lease: float) -> list[Job]:
    """Takes jobs for `lease` seconds; whoever dies with them leaves them to the next."""
    rows = await connection.fetch(
        """
        WITH claimed AS (
            UPDATE embedding_jobs SET run_after = now() + $2
             WHERE artifact_id IN (
                   SELECT artifact_id FROM embedding_jobs WHERE run_after <= now()
                    ORDER BY run_after LIMIT $1 FOR UPDATE SKIP LOCKED)
            RETURNING artifact_id)
        SELECT artifacts.id, artifacts.name, artifacts.content
          FROM claimed JOIN artifacts ON artifacts.id = claimed.artifact_id
        """,
        limit,
        timedelta(seconds=lease),
    )
    return [Job(row["id"], row["name"], row["content"]) for row in rows]


async def count_jobs(connection: Connection) -> int:
    """Artifacts without a vector whose text can have one; counts no further than MAX_COUNTED."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM (SELECT 1 FROM embedding_jobs WHERE attempts = 0 LIMIT $1) AS waiting", MAX_COUNTED
        )
    )


async def finish_jobs(connection: Connection, done: Sequence[tuple[UUID, Embedding]]) -> None:
    """Stores vectors and takes their jobs away."""
    await connection.executemany(
        """
        UPDATE artifacts
           SET embedding = $2::text::halfvec, embedding_model = $3, embedding_dimensions = $4
         WHERE id = $1 AND embedding IS NULL
        """,
        [(artifact_id, found.vector, found.model, found.dimensions) for artifact_id, found in done],
    )
    await connection.execute(
        "DELETE FROM embedding_jobs WHERE artifact_id = ANY($1::uuid[])", [artifact_id for artifact_id, _ in done]
    )


async def postpone_jobs(connection: Connection, artifact_ids: Sequence[UUID], delay: float, *, failed: bool) -> None:
    """Gives jobs back for `delay` seconds; `failed` counts an attempt that the text itself caused."""
    await connection.execute(
        """
        UPDATE embedding_jobs SET run_after = now() + $2, attempts = attempts + $3::integer
         WHERE artifact_id = ANY($1::uuid[])
        """,
        artifact_ids,
        timedelta(seconds=delay),
        int(failed),
    )


def _hits(rows: Sequence[Row]) -> list[Hit]:
    return [Hit(row["id"], row["name"], row["created_at"], row["score"]) for row in rows]
