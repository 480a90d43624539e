"""Parts of the fleet fail for real while people outside work with the API: what does it cost, and is anything lost?

Nothing that was acknowledged may be missing, doubled or changed, whatever fails. What a fault may cost otherwise is in
faults.py; what it did cost is printed and kept in results/faults. FAULTS="host-lost redis-hung" chooses; REPEATS=5.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from drills.faults import FAULTS
from drills.rollout.judge import Allowance, complaints
from drills.rollout.load import Load, Stored
from lib.client import artifact_writer, edge_client, register_and_login
from lib.fleet import REPOSITORY, Fleet
from lib.waiting import wait_for

RESULTS = REPOSITORY / "results" / "faults"
CHOSEN = os.environ.get("FAULTS", "").split() or list(FAULTS)
REPEATS = range(int(os.environ.get("REPEATS", "1")))


@pytest.mark.long
@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("name", CHOSEN)
def test_nothing_is_lost_when(
    healthy: Fleet, tmp_path: Path, record_property: Callable[[str, object], None], name: str, repeat: int
) -> None:
    fault = FAULTS[name]
    with edge_client(healthy) as client:
        write = artifact_writer(healthy, register_and_login(client))
    with Load(healthy, f"{name}-{repeat}", tmp_path, RESULTS) as load:
        undo = fault.do(healthy)
        try:
            load.mark("it is so")
            load.steady(fault.lasts_s)
            wait_for("writes go on", lambda: write("probe")[0] == "ok", timeout_s=120)
        finally:
            undo()
        load.mark("over")
        wait_for("the fleet is healthy again", healthy.healthy, timeout_s=180, interval_s=2)
    for figure in ("write_gap_s", "failures", "retries", "p99_ms", "worst_ms"):
        record_property(figure, getattr(load.verdict, figure))
    assert load.stored == Stored()
    allowed = Allowance(failures=fault.failures, worst_s=fault.gap_s + 15, gap_s=fault.gap_s)
    assert not list(complaints(load.verdict, allowed))
    assert load.verdict.write_gap_s <= fault.gap_s
