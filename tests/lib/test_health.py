"""The fleet's health is asked for when it is not known, and never taken for granted after a failure."""

from collections.abc import Callable

import pytest

from lib import health
from lib.fleet import Fleet
from lib.health import Health


class Asked(Fleet):
    """A fleet that answers as it is told to, once each time."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def healthy(self) -> bool:
        """The next answer."""
        return self.answers.pop(0)


def once(what: str, probe: Callable[[], bool], timeout_s: float, interval_s: float) -> None:
    """A wait without patience."""
    if not probe():
        raise TimeoutError(what)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "wait_for", once)
    monkeypatch.setattr(Health, "_tell", lambda *_: None)


def test_what_one_test_left_healthy_the_next_one_finds_so() -> None:
    fleet = Asked(True, True, True)
    kept = Health(fleet)
    with kept.kept():
        assert len(fleet.answers) == 2
    with kept.kept():
        assert len(fleet.answers) == 1
    assert fleet.answers == []


def test_after_one_that_did_not_the_fleet_is_asked_again() -> None:
    fleet = Asked(True, False, False, True, True)
    kept = Health(fleet)
    with pytest.raises(TimeoutError, match="again after"), kept.kept():
        pass
    with pytest.raises(TimeoutError, match="before"), kept.kept():
        pytest.fail("the fleet is not healthy")
    with kept.kept():
        pass
    assert fleet.answers == []


def test_a_test_that_was_broken_off_leaves_nothing_known() -> None:
    fleet = Asked(True, True, True)
    kept = Health(fleet)
    with pytest.raises(KeyboardInterrupt), kept.kept():
        raise KeyboardInterrupt
    with kept.kept():
        assert len(fleet.answers) == 1
