"""What a client's record says: who was not served, how long it took, whether what was acknowledged is there."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The figures of one run. Latencies in milliseconds from the moment a request was due; the gap in seconds."""

    requests: int
    failures: int
    retries: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    longest_gap_s: float
    by_operation: dict[str, int]
    by_kind: dict[str, int]
    failed: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self)


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """A record's requests and users. Raises ValueError for a record that was cut off."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines or "users" not in lines[-1]:
        raise ValueError(f"{path}: the client did not end by itself")
    return lines[:-1], lines[-1]["users"]


def is_failure(line: Line) -> bool:
    """Whether the sender of a request was not served."""
    return bool(line["status"] != line["expected"])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def judge(lines: Iterable[Line]) -> Verdict:
    """The verdict on a record."""
    requests = list(lines)
    failed = [line for line in requests if is_failure(line)]
    latencies = [1000 * (line["done"] - line["due"]) for line in requests]
    served = sorted(line["done"] for line in requests if not is_failure(line))
    gaps = [after - before for before, after in itertools.pairwise(served)]
    return Verdict(
        requests=len(requests),
        failures=len(failed),
        retries=sum(line["retries"] for line in requests),
        p50_ms=round(percentile(latencies, 0.5), 1),
        p99_ms=round(percentile(latencies, 0.99), 1),
        worst_ms=round(max(latencies, default=0.0), 1),
        longest_gap_s=round(max(gaps, default=0.0), 2),
        by_operation=dict(Counter(line["operation"] for line in requests)),
        by_kind=dict(Counter(line["kind"] for line in requests)),
        failed=dict(Counter(f"{x['operation']} {x['kind']} {x['served_by']}: {x['error']}" for x in failed)),
    )


def missing_or_doubled(lines: Iterable[Line], stored: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of acknowledged artifacts that are not stored, and of those that are stored more than once.

    :param stored: how often each name is stored. A request without an answer may have been done or not, but not twice.
    """
    creates = [line for line in lines if line["operation"] == "create"]
    lost = [line["key"] for line in creates if not is_failure(line) and not stored[line["key"]]]
    return lost, [line["key"] for line in creates if stored[line["key"]] > 1]
