"""What an attempt leaves behind: a report for people, and metrics made from it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arches_prover.checks import Check
from arches_prover.settings import STATE
from arches_prover.store import Backup

FILE = STATE / "last.json"
METRICS = Path("/var/lib/prometheus/node-exporter/arches-prover.prom")


@dataclass
class Report:
    """One attempt. Times are seconds since 1970.

    :param finished: None while it runs, and for ever when it was killed.
    :param rpo_s: age of the newest canary at the start.
    :param seconds: duration of restore, replay and checks.
    :param last_proven: ``at``, ``duration_s``, ``rpo_s`` and ``backup`` of the last proof that succeeded.
    """

    started: float
    finished: float | None = None
    proven: bool = False
    why: str = "it runs, or was killed before it was done"
    rpo_s: float | None = None
    backup: Backup | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    last_proven: dict[str, float | str | None] | None = None

    def write(self) -> None:
        """In the place of the report before."""
        replace(FILE, json.dumps(asdict(self), indent=1) + "\n")


def read() -> dict[str, Any]:
    """The last report; empty when there is none."""
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def replace(file: Path, text: str) -> None:
    """Write a file that everybody may read; it is there at once or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.rename(file)


def metrics(report: Mapping[str, Any], ended_well: bool, interval_s: int) -> str:
    """A report for Prometheus. What was never measured is left out."""
    proven = report["last_proven"] or {}
    measured = {
        "arches_restore_last_attempt_timestamp_seconds": report["started"],
        "arches_restore_last_attempt_success": int(report["proven"] and ended_well),
        "arches_restore_last_proven_timestamp_seconds": proven.get("at"),
        "arches_restore_duration_seconds": proven.get("duration_s"),
        "arches_restore_rpo_seconds": proven.get("rpo_s") if report["rpo_s"] is None else report["rpo_s"],
        "arches_restore_interval_seconds": interval_s,
    }
    return "".join(f"{name} {value}\n" for name, value in measured.items() if value is not None)
