"""Fixtures of the drills: a running fleet, and the receiver that it sends its alerts to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from drills.alerts import DRILLS
from drills.recovering import Writes
from lib.drill import sweep, undo_all
from lib.fleet import Fleet, local_fleet
from lib.waiting import wait_for
from lib.webhook import Webhook


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The local fleet, without what an interrupted run left behind."""
    fleet = local_fleet()
    sweep(fleet)
    if not fleet.healthy():
        undo_all(fleet, DRILLS.values())
    return fleet


@pytest.fixture(scope="session")
def webhook(fleet: Fleet) -> Iterator[Webhook]:
    """The receiver that the environment's inventory names; on this computer."""
    receivers = next(iter(fleet.variables.values()))["alert_receivers"]
    with Webhook(receivers["page"][0]["url"]) as listening:
        yield listening
        assert not listening.forgotten


@pytest.fixture
def healthy(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, healthy before the drill and healthy again after it."""
    wait_for("the fleet is healthy before the drill", fleet.healthy, timeout_s=90, interval_s=1)
    yield fleet
    wait_for("the fleet is healthy again after the drill", fleet.healthy, timeout_s=120, interval_s=1)


@pytest.fixture
def writes(healthy: Fleet, tmp_path: Path) -> Writes:
    """Somebody who writes, on a healthy fleet."""
    return Writes(healthy, tmp_path)
