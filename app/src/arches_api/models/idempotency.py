"""Answers that were given, by the key of the request: written in the transaction that did what they say."""

from dataclasses import dataclass
from datetime import timedelta

import orjson

from ..lib.database import Connection

KEPT = timedelta(hours=24)


class InFlight(Exception):
    """Another transaction works on the same key at this moment."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and the fingerprint of what had been asked."""

    fingerprint: bytes
    status: int
    headers: dict[str, str]
    body: bytes


async def claim(connection: Connection, key_id: bytes) -> Answer | None:
    """Takes the key until the transaction ends; the answer of an earlier one, if there was one. Raises InFlight.

    Two statements: the second must see what was committed before the lock was free.
    """
    lock = int.from_bytes(key_id[:8], signed=True)
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", lock):
        raise InFlight
    row = await connection.fetchrow(
        "SELECT fingerprint, status, headers, body FROM idempotency_keys WHERE id = $1", key_id
    )
    return None if row is None else Answer(row["fingerprint"], row["status"], orjson.loads(row["headers"]), row["body"])


async def keep(connection: Connection, key_id: bytes, answer: Answer) -> None:
    """Stores the answer; the key must have been claimed in this transaction."""
    await connection.execute(
        "INSERT INTO idempotency_keys (id, fingerprint, status, headers, body) VALUES ($1, $2, $3, $4, $5)",
        key_id,
        answer.fingerprint,
        answer.status,
        orjson.dumps(answer.headers).decode(),
        answer.body,
    )


async def delete_expired(connection: Connection, limit: int) -> int:
    """Removes answers that are older than KEPT, at most `limit`; returns how many."""
    deleted = await connection.fetch(
        """
        DELETE FROM idempotency_keys WHERE id IN (
            SELECT id FROM idempotency_keys WHERE created_at < now() - $2::interval
            ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING id
        """,
        limit,
        KEPT,
    )
    return len(deleted)
