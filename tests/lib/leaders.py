"""Who leads what in the fleet, as its hosts say now."""

from lib.fleet import Fleet


def leads(fleet: Fleet, service: str) -> str | None:
    """Who leads Postgres, Redis or etcd."""
    found = fleet.status()[1][service]["leader"]
    return str(found) if found else None


def leader(fleet: Fleet, service: str = "postgres") -> str:
    """Who leads. Raises AssertionError when nobody does."""
    found = leads(fleet, service)
    assert found, f"{service} has no leader"
    return found
