"""Records that must be judged bad, and good ones that must not."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drills.rollout.judge import judge, missing_or_doubled, percentile, read
from drills.rollout.plot import svg


def line(due: float, took: float = 0.01, **more: Any) -> dict[str, Any]:
    """A request that was served."""
    return {"operation": "read", "kind": "h2", "due": due, "done": due + took, "status": 200, "expected": 200,
            "retries": 0, "error": "", "served_by": "api1", "key": "", **more}  # fmt: skip


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
    verdict = judge([line(0, retries=1), line(1)])
    assert (verdict.failures, verdict.retries) == (0, 1)


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


def test_the_plot_shows_failures_and_marks() -> None:
    drawn = svg([line(0), line(1, status=500)], [(0.5, "begins <here>")], "a drill")
    assert drawn.count("#c00") == 1 and "begins &lt;here&gt;" in drawn
