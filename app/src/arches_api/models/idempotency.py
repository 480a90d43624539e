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


async def claim(connection: Connection, key_id: bytes, fingerprint: bytes) -> Answer | None:
    """None when the key is ours until the transaction ends, otherwise its answer. Raises InFlight.

    The primary key decides who is first; the lock spares the others to wait for its transaction.
    """
    claimed = await connection.fetchval(
        """
        INSERT INTO idempotency_keys (id, fingerprint)
        SELECT $1::bytea, $2::bytea WHERE pg_try_advisory_xact_lock($3)
        ON CONFLICT (id) DO NOTHING RETURNING true
        """,
        key_id,
        fingerprint,
        int.from_bytes(key_id[:8], signed=True),
    )
    if claimed:
        return None
    row = await connection.fetchrow(
        "SELECT fingerprint, status, headers, body FROM idempotency_keys WHERE id = $1", key_id
    )
    if row is None:
        raise InFlight
    return Answer(row["fingerprint"], row["status"], orjson.loads(row["headers"]), row["body"])


async def keep(connection: Connection, key_id: bytes, status: int, headers: dict[str, str], body: bytes) -> None:
    """Stores the answer of a key that this transaction has claimed."""
    await connection.execute(
        "UPDATE idempotency_keys SET status = $2, headers = $3, body = $4 WHERE id = $1",
        key_id,
        status,
        orjson.dumps(headers).decode(),
        body,
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
