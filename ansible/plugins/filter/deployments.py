"""What the fleet's record of its deployments tells. Pure functions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

type Entry = dict[str, Any]


def deployments(slurped: str) -> list[Entry]:
    """Rollouts that serve or served, oldest first, of the record as `slurp` returns it; none if empty."""
    entries = [json.loads(line) for line in base64.b64decode(slurped).splitlines() if line]
    return [entry for entry in entries if entry.get("outcome") == "serves"]


def release_before(entries: Sequence[Entry], current: str) -> str:
    """The release that served when `current` was rolled out the last time; empty when nobody wrote it down."""
    before = [entry["from"] for entry in entries if entry["release"]["version"] == current and "from" in entry]
    return str(next(iter(before[-1].values()), "") or "") if before else ""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"deployments": deployments, "release_before": release_before}
