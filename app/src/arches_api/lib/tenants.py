"""Remembers which organizations are large, because large ones are searched differently."""

import time
from collections import OrderedDict
from uuid import UUID

from ..models import artifacts
from .database import Connection

REMEMBERED = 10_000  # organizations
FRESH = 60.0  # seconds


class TenantSizes:
    """A cache of "has at least `exact_rows` vectors", counted by Postgres at most once a minute and process."""

    def __init__(self, exact_rows: int) -> None:
        self._exact_rows = exact_rows
        self._known: OrderedDict[UUID, tuple[float, bool]] = OrderedDict()

    async def is_large(self, connection: Connection, organization_id: UUID) -> bool:
        """True when comparing all vectors of the organization would take too long."""
        until, large = self._known.get(organization_id, (0.0, False))
        if time.monotonic() < until:
            return large
        counted = await artifacts.count_embedded(connection, organization_id, self._exact_rows + 1)
        large = counted > self._exact_rows
        self._known[organization_id] = (time.monotonic() + FRESH, large)
        self._known.move_to_end(organization_id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return large
