"""The fleet's Postgres, asked on the host that leads."""

from lib.fleet import Fleet
from lib.leaders import leader


def sql(fleet: Fleet, *statements: str) -> str:
    """What statements on the leader return; each is a transaction."""
    words = " ".join(f'-c "{statement}"' for statement in statements)
    return fleet.ssh(leader(fleet), f"psql -U postgres -XAtq -v ON_ERROR_STOP=1 arches {words}").stdout.strip()
