"""Fixtures of the drills: a running fleet, and the receiver that it sends its alerts to. REPEATS=5 repeats each."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drills.alerts import DRILLS
from drills.recovering import Writes
from lib.drill import sweep, undo_all
from lib.fleet import Fleet, local_fleet
from lib.health import Health
from lib.webhook import Webhook


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A drill whose figures are kept is done as often as REPEATS says; each run has a number."""
    if "repeat" in metafunc.fixturenames:
        metafunc.parametrize("repeat", range(int(os.environ.get("REPEATS", "1"))))


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


@pytest.fixture(scope="session")
def health(fleet: Fleet) -> Health:
    """What is known of the fleet's health."""
    return Health(fleet)


@pytest.fixture
def healthy(health: Health) -> Iterator[Fleet]:
    """The fleet, healthy before the drill and healthy again after it."""
    with health.kept() as fleet:
        yield fleet


@pytest.fixture
def writes(healthy: Fleet, tmp_path: Path, repeat: int) -> Writes:
    """Somebody who writes, on a healthy fleet."""
    return Writes(healthy, tmp_path, repeat)
