"""Users and their personal organizations."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg

from ..lib.database import Connection


class EmailTaken(Exception):
    """Somebody has registered with this address."""


@dataclass(frozen=True, slots=True)
class User:
    """A person who may log in."""

    id: UUID
    organization_id: UUID
    email: str
    name: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What login compares."""

    user: User
    password_hash: str


async def create(connection: Connection, *, email: str, name: str, password_hash: str) -> User:
    """The new user, in a new personal organization. Raises EmailTaken. `email` is in lower case."""
    organization_id = await connection.fetchval("INSERT INTO organizations (name) VALUES ($1) RETURNING id", name)
    try:
        user_id = await connection.fetchval(
            """
            INSERT INTO users (organization_id, email, name, password_hash)
            VALUES ($1, $2, $3, $4) RETURNING id
            """,
            organization_id,
            email,
            name,
            password_hash,
        )
    except asyncpg.UniqueViolationError as error:
        raise EmailTaken from error
    return User(user_id, organization_id, email, name)


async def credentials(connection: Connection, email: str) -> Credentials | None:
    """What to compare a login with; None when there is no such user."""
    row = await connection.fetchrow(
        "SELECT id, organization_id, email, name, password_hash FROM users WHERE email = $1", email
    )
    if row is None:
        return None
    return Credentials(User(row["id"], row["organization_id"], row["email"], row["name"]), row["password_hash"])


async def get(connection: Connection, user_id: UUID) -> User | None:
    """The user, or None."""
    row = await connection.fetchrow("SELECT id, organization_id, email, name FROM users WHERE id = $1", user_id)
    return None if row is None else User(row["id"], row["organization_id"], row["email"], row["name"])


async def set_password_hash(connection: Connection, user_id: UUID, password_hash: str) -> None:
    """Stores a hash made with newer parameters."""
    await connection.execute("UPDATE users SET password_hash = $2 WHERE id = $1", user_id, password_hash)
