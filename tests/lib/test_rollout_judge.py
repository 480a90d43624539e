"""Records that must be judged bad, and good ones that must not."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drills.rollout.judge import Allowance, complaints, judge, missing_or_doubled, percentile, read
from drills.rollout.plot import svg


def line(due: float, took: float = 0.01, **more: Any) -> dict[str, Any]:
    """A request that was served."""
    return {"operation": "read", "kind": "h2", "due": due, "sent": due, "done": due + took, "status": 200,
            "expected": 200, "retries": 0, "retried_for": "", "error": "", "served_by": "api1", "key": "",
            **more}  # fmt: skip


def create(key: str, status: int = 201) -> dict[str, Any]:
    """An artifact that was to be stored."""
    return line(0, operation="create", key=key, status=status, expected=201)


def test_a_clean_record_has_no_failure() -> None:
    verdict = judge(line(moment / 10) for moment in range(100))
    assert (verdict.requests, verdict.failures, verdict.retries) == (100, 0, 0)
    assert verdict.longest_gap_s == pytest.approx(0.1) and verdict.worst_ms == 10


@pytest.mark.parametrize("status", [0, 500, 503, 404, 429])
def test_whoever_was_not_served_counts(status: int) -> None:
    verdict = judge([line(0), line(1, status=status, error="broken")])
    assert verdict.failures == 1
    assert verdict.failed == {"read h2 api1: broken": 1}


def test_retries_are_told_and_are_no_failures() -> None:
    verdict = judge([line(0, retries=1, retried_for="closed"), line(1)])
    assert (verdict.failures, verdict.retries, verdict.retried) == (0, 1, {"closed": 1})


def test_whoever_was_served_by_a_second_retry_counts() -> None:
    assert judge([line(0, retries=2, retried_for="closed")]).failures == 1


def test_each_operation_and_each_kind_has_its_figures() -> None:
    lines = [line(0), line(1, took=2, kind="close"), line(2, status=500, operation="search"), line(3, retries=1)]
    verdict = judge(lines)
    assert {kind: (f.requests, f.failures, f.worst_ms) for kind, f in verdict.by_kind.items()} == {
        "close": (1, 0, 2000),
        "h2": (3, 1, 10),
    }
    assert {name: (f.requests, f.failures, f.retries) for name, f in verdict.by_operation.items()} == {
        "read": (3, 0, 1),
        "search": (1, 1, 0),
    }


def test_how_late_the_client_was_is_told_and_counts() -> None:
    verdict = judge([line(0, took=0.3, sent=0.2)])
    assert (verdict.late_p99_ms, verdict.worst_ms) == (200, 300)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([line(0), line(1, status=500)], "1 requests failed, 0 may"),
        ([line(0, took=3.5), line(1, took=0.1), line(2), line(3)], "the slowest request took 3.5 s, 3 s are allowed"),
        ([line(0), line(4.1)], "nobody was served for 4.1 s, 2 s are allowed"),
        # Also when it began before the first good answer, or did not end.
        ([line(0, status=500), line(4)], "nobody was served for 4.01 s"),
        ([line(0), line(4, status=500)], "nobody was served for 4.0 s"),
        ([line(0, status=500)] * 2, "2 requests failed"),
    ],
)
def test_what_a_drill_does_not_allow_is_said(lines: list[dict[str, Any]], says: str) -> None:
    assert any(says in sentence for sentence in complaints(judge(lines), Allowance(worst_s=3, gap_s=2)))


def test_what_a_drill_allows_is_not_complained_of() -> None:
    lines = [line(moment / 2, took=1) for moment in range(10)]
    lines[3]["status"] = 500
    assert list(complaints(judge(lines), Allowance(failures=1, worst_s=1.1, gap_s=2))) == []


def test_a_silence_shows_although_nothing_failed() -> None:
    verdict = judge([line(0), line(1, took=4.0), line(1.1, took=3.9), line(5.1)])
    assert verdict.longest_gap_s == pytest.approx(4.99) and verdict.worst_ms == 4000


def test_what_was_acknowledged_must_be_there_once() -> None:
    lines = [create("kept"), create("lost"), create("twice"), create("unknown", status=0), create("unknown twice", 0)]
    stored = Counter({"kept": 1, "twice": 2, "unknown": 1, "unknown twice": 2})
    assert missing_or_doubled(lines, stored) == (["lost"], ["twice", "unknown twice"])
    assert missing_or_doubled([create("unknown", status=0)], Counter()) == ([], [])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 100
    assert percentile([], 0.5) == 0


def test_a_record_that_was_cut_off_is_none(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text(json.dumps(line(0)) + "\n")
    with pytest.raises(ValueError, match="did not end by itself"):
        read(record)
    record.write_text("\n".join([json.dumps(line(0)), json.dumps({"sent": 2, "users": []})]))
    with pytest.raises(ValueError, match="2 requests were sent, 1 are in the record"):
        read(record)


def test_the_plot_shows_failures_and_marks() -> None:
    drawn = svg([line(0), line(1, status=500), line(2, retries=1)], [(0.5, "begins <here>")], "a drill")
    assert (drawn.count("#c00"), drawn.count("#e90"), drawn.count("#2a2")) == (1, 1, 1)
    assert "begins &lt;here&gt;" in drawn
