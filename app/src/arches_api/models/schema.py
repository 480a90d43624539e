"""What the database says about itself."""

from dataclasses import dataclass

from ..lib.database import Connection


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`level` is the newest applied migration; `requires_code` the oldest level of code that still works with it."""

    writable: bool
    level: int
    requires_code: int


async def state(connection: Connection) -> SchemaState:
    """One round trip."""
    row = await connection.fetchrow(
        """
        SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writable,
               coalesce(max(version), 0) AS level,
               coalesce(max(requires_code), 0) AS requires_code
          FROM schema_migrations
        """
    )
    return SchemaState(row["writable"], row["level"], row["requires_code"])
