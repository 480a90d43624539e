"""A planned switchover of Postgres costs nobody a request."""

import time
from collections.abc import Callable
from pathlib import Path

from lib.client import artifact_writer, stored
from lib.fleet import Fleet
from lib.history import History, WriteLoad, lost
from lib.leaders import leader
from lib.waiting import wait_for

PLAYBOOK = "ansible/recover/postgres-switchover.yml"


def test_a_switchover_without_a_confirmation_changes_nothing(healthy: Fleet) -> None:
    before = leader(healthy)
    result = healthy.playbook(PLAYBOOK, check=False)
    assert f"{before} leads Postgres" in result.output and "Nothing was changed" in result.output
    assert result.changed == 0
    assert leader(healthy) == before


def test_no_request_fails_while_another_member_takes_over(
    healthy: Fleet, user: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    history = History(tmp_path / "history.jsonl")
    before = leader(healthy)
    candidate = healthy.status()[1]["postgres"]["sync"][-1]
    with WriteLoad(history, artifact_writer(healthy, user)):
        wait_for("the load runs", lambda: history.counts()["ok"] >= 50, timeout_s=30)
        began = time.monotonic()
        result = healthy.playbook(PLAYBOOK, "-e", "confirm=local", "-e", f"candidate={candidate}")
        ended = time.monotonic()
        after = history.counts()["ok"]
        wait_for("the load goes on", lambda: history.counts()["ok"] >= after + 50, timeout_s=30)
    counts, gap = history.counts(), history.longest_gap_s(began, ended)
    record_property("write_gap_s", round(gap, 1))
    print(f"{before} -> {candidate}: longest gap between acknowledged writes {gap:.1f} s, {dict(counts)}")
    assert (counts["fail"], counts["unknown"]) == (0, 0), counts
    assert counts["ok"] == counts["invoke"] > 100
    assert lost(history, stored(healthy, user, history)) == []
    assert "recovered and proven" in result.output
    assert leader(healthy) == candidate
    assert gap <= 8
