"""What a client's record says: who was not served, how long it took, whether what was acknowledged is there."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """Figures of some requests. Latencies in milliseconds from the moment a request was due."""

    requests: int
    failures: int
    retries: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


@dataclass(frozen=True)
class Verdict(Figures):
    """The figures of one run.

    `longest_gap_s` is the longest time without a good answer, from the first request to the end of the last, in
    seconds, and `write_gap_s` the same for acknowledged writes; `late_p99_ms` how late the client itself was with
    sending, which is in the latencies.
    """

    longest_gap_s: float
    write_gap_s: float
    late_p99_ms: float
    by_operation: dict[str, Figures]
    by_kind: dict[str, Figures]
    retried: dict[str, int]
    failed: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self)


@dataclass(frozen=True)
class Allowance:
    """What a drill allows: failures, and seconds for the slowest request and for the longest gap."""

    failures: int = 0
    worst_s: float = 5.0
    gap_s: float = 5.0


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """A record's requests and users. Raises ValueError for a record that is not whole."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines or "users" not in lines[-1]:
        raise ValueError(f"{path}: the client did not end by itself")
    end = lines.pop()
    if len(lines) != end["sent"]:
        raise ValueError(f"{path}: {end['sent']} requests were sent, {len(lines)} are in the record")
    return lines, end["users"]


def is_failure(line: Line) -> bool:
    """Whether the sender of a request was not served, or not by one retry at most."""
    return bool(line["status"] != line["expected"] or line["retries"] > 1)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def figures(lines: Sequence[Line]) -> Figures:
    """The figures of some requests."""
    latencies = [1000 * (line["done"] - line["due"]) for line in lines]
    return Figures(
        requests=len(lines),
        failures=sum(is_failure(line) for line in lines),
        retries=sum(line["retries"] for line in lines),
        p50_ms=round(percentile(latencies, 0.5), 1),
        p99_ms=round(percentile(latencies, 0.99), 1),
        worst_ms=round(max(latencies, default=0.0), 1),
    )


def judge(lines: Iterable[Line]) -> Verdict:
    """The verdict on a record."""
    requests = list(lines)
    failed = [line for line in requests if is_failure(line)]
    return Verdict(
        **asdict(figures(requests)),
        longest_gap_s=longest_gap([line for line in requests if not is_failure(line)], requests),
        write_gap_s=longest_gap([line for line in requests if acknowledged(line)], requests),
        late_p99_ms=round(percentile([1000 * (line["sent"] - line["due"]) for line in requests], 0.99), 1),
        by_operation=_by("operation", requests),
        by_kind=_by("kind", requests),
        retried=dict(Counter(line["retried_for"] for line in requests if line["retries"])),
        failed=dict(Counter(f"{x['operation']} {x['kind']} {x['served_by']}: {x['error']}" for x in failed)),
    )


def longest_gap(good: Sequence[Line], requests: Sequence[Line]) -> float:
    """Longest time in seconds between two good answers; a silence at the beginning or the end is one, too."""
    moments = [line["done"] for line in good]
    if requests:
        moments += [min(line["due"] for line in requests), max(line["done"] for line in requests)]
    return round(max((after - before for before, after in itertools.pairwise(sorted(moments))), default=0.0), 2)


def _by(name: str, lines: Sequence[Line]) -> dict[str, Figures]:
    values = sorted({line[name] for line in lines})
    return {value: figures([line for line in lines if line[name] == value]) for value in values}


def complaints(verdict: Verdict, allowed: Allowance) -> Iterator[str]:
    """A sentence for each thing that a drill does not allow."""
    if verdict.failures > allowed.failures:
        yield f"{verdict.failures} requests failed, {allowed.failures} may: {verdict.failed}"
    if verdict.worst_ms > 1000 * allowed.worst_s:
        yield f"the slowest request took {verdict.worst_ms / 1000:.1f} s, {allowed.worst_s} s are allowed"
    if verdict.longest_gap_s > allowed.gap_s:
        yield f"nobody was served for {verdict.longest_gap_s} s, {allowed.gap_s} s are allowed"


def missing_or_doubled(lines: Iterable[Line], stored: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of acknowledged artifacts that are not stored, and of those that are stored more than once.

    :param stored: how often each name is stored. A request without an answer may have been done or not, but not twice.
    """
    creates = [line for line in lines if line["operation"] == "create"]
    lost = [line["key"] for line in creates if acknowledged(line) and not stored[line["key"]]]
    return lost, [line["key"] for line in creates if stored[line["key"]] > 1]


def acknowledged(line: Line) -> bool:
    """Whether a server said that it has stored an artifact."""
    return bool(line["operation"] == "create" and line["status"] == line["expected"])
