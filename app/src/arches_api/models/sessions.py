"""Sessions and their refresh tokens. Tokens arrive here as hashes only."""

from datetime import timedelta
from enum import Enum
from uuid import UUID

from ..lib.database import Connection
from ..lib.tokens import Principal


class Refusal(Enum):
    """Why a refresh token was not exchanged."""

    INVALID = "unknown, expired or revoked"
    JUST_USED = "used a moment ago, its successor is not: two requests at once"
    REUSED = "used before: the whole session was revoked"


async def start(connection: Connection, user_id: UUID, token_hash: bytes, lifetime: float) -> None:
    """A new session of `lifetime` seconds with its first refresh token."""
    session_id = await connection.fetchval(
        "INSERT INTO sessions (user_id, expires_at) VALUES ($1, now() + $2) RETURNING id",
        user_id,
        timedelta(seconds=lifetime),
    )
    await _add_token(connection, session_id, token_hash)


async def rotate(connection: Connection, old: bytes, new: bytes, grace: float) -> Principal | Refusal:
    """Exchanges a refresh token, once.

    Of several at once exactly one wins. The others find the token used less than `grace` seconds ago and are refused
    without harm; a later use means that somebody has a copy, and ends the session.
    """
    row = await connection.fetchrow(
        """
        UPDATE refresh_tokens
           SET used_at = clock_timestamp()
          FROM sessions JOIN users ON users.id = sessions.user_id
         WHERE refresh_tokens.token_hash = $1
           AND refresh_tokens.used_at IS NULL
           AND sessions.id = refresh_tokens.session_id
           AND sessions.revoked_at IS NULL
           AND sessions.expires_at > now()
        RETURNING refresh_tokens.session_id, sessions.user_id, users.organization_id
        """,
        old,
    )
    if row is None:
        return await _refuse(connection, old, grace)
    await _add_token(connection, row["session_id"], new)
    return Principal(row["user_id"], row["organization_id"])


async def delete_expired(connection: Connection, limit: int) -> int:
    """Removes sessions that ended a day ago, at most `limit`; returns how many."""
    deleted = await connection.fetch(
        """
        DELETE FROM sessions WHERE id IN (
            SELECT id FROM sessions WHERE expires_at < now() - interval '1 day'
            ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING id
        """,
        limit,
    )
    return len(deleted)


async def _add_token(connection: Connection, session_id: UUID, token_hash: bytes) -> None:
    await connection.execute(
        "INSERT INTO refresh_tokens (token_hash, session_id) VALUES ($1, $2)", token_hash, session_id
    )


async def _refuse(connection: Connection, token_hash: bytes, grace: float) -> Refusal:
    row = await connection.fetchrow(
        """
        SELECT used.session_id,
               used.used_at > clock_timestamp() - $2::interval AS recent,
               NOT EXISTS (SELECT FROM refresh_tokens AS later
                            WHERE later.session_id = used.session_id AND later.used_at > used.used_at) AS predecessor
          FROM refresh_tokens AS used JOIN sessions ON sessions.id = used.session_id
         WHERE used.token_hash = $1 AND used.used_at IS NOT NULL
           AND sessions.revoked_at IS NULL AND sessions.expires_at > now()
        """,
        token_hash,
        timedelta(seconds=grace),
    )
    if row is None:
        return Refusal.INVALID
    if row["recent"] and row["predecessor"]:
        return Refusal.JUST_USED
    await connection.execute(
        "UPDATE sessions SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL", row["session_id"]
    )
    return Refusal.REUSED
