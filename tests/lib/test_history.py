"""The checker itself: histories that must be judged bad."""

import threading
from pathlib import Path

import pytest

from lib.history import Event, History, WriteLoad, lost


def make(tmp_path: Path, *events: tuple[str, Event, str | None]) -> History:
    history = History(tmp_path / "history.jsonl")
    for key, event, value in events:
        history.record(key, event, value)
    return history


def test_an_acknowledged_write_that_is_missing_is_a_loss(tmp_path: Path) -> None:
    history = make(tmp_path, ("a", "invoke", None), ("a", "ok", "1"), ("b", "invoke", None), ("b", "ok", "2"))
    assert lost(history, present={"1"}) == ["b"]


@pytest.mark.parametrize("event", ["fail", "unknown"])
def test_only_acknowledged_writes_can_be_lost(tmp_path: Path, event: Event) -> None:
    history = make(tmp_path, ("a", "invoke", None), ("a", event, "1"))
    assert lost(history, present=set()) == []


def test_the_gap_includes_the_edges_of_the_window(tmp_path: Path) -> None:
    history = make(tmp_path, ("a", "ok", "1"))
    at = history.entries[0].at
    assert history.longest_gap_s(at - 1, at + 3) == pytest.approx(3)
    assert history.longest_gap_s(at + 1, at + 8) == pytest.approx(7), "no acknowledgement at all is one long gap"


def test_every_write_is_on_disk_before_it_is_sent(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    seen: list[bool] = []
    done = threading.Event()

    def write(key: str) -> tuple[str, str]:
        seen.append(f'"{key}", "event": "invoke"' in (tmp_path / "history.jsonl").read_text())
        if len(seen) == 3:
            done.set()
        return "ok", key

    with WriteLoad(history, write, workers=1, pause_s=0):  # type: ignore[arg-type]
        assert done.wait(5)
    assert all(seen)
    assert history.counts()["ok"] == history.counts()["invoke"]
