"""What the role says, and where things are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

FILE = Path("/etc/arches-prover/prover.json")
STATE = Path("/var/lib/arches-prover")
SCRATCH = STATE / "scratch"
DATA = SCRATCH / "data"
SOCKETS = Path("/run/arches-prover")
POSTGRES = Path("/usr/lib/postgresql/17/bin")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """The role's file has the same keys.

    :param stanza: name of the backups in the store.
    :param database: database with the canaries and the application's tables.
    :param interval_s: seconds from one proof to the next.
    :param memory_mb: MiB for everything that a proof runs.
    :param spare_mb: MiB that must be free besides the database's own size: WAL, and what the copy writes itself.
    :param rpo_s: age of the newest canary at the start, in seconds, above which too much would be lost.
    :param patience_s: seconds for which the store may be away.
    :param heapallindexed_mb: up to this size of all databases every row is looked up in every index.
    :param landmark: ``query``, a vector, and ``nearest``, ids of the rows of canary.landmark nearest to it, in order.
    """

    stanza: str
    database: str
    interval_s: int
    memory_mb: int
    spare_mb: int
    rpo_s: int
    patience_s: int
    heapallindexed_mb: int
    landmark: Mapping[str, Any]

    @classmethod
    def read(cls) -> Self:
        """From the role's file."""
        return cls(**json.loads(FILE.read_text()))
