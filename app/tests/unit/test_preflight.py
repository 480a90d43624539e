"""What a release has to show before it serves."""

from collections import Counter

import pytest

from arches_api.preflight import FLOOR, conversation, verdict


@pytest.mark.parametrize(
    ("new", "old", "refused"),
    [
        ([0.010] * 9, [0.010] * 9, False),
        ([0.100] * 9, [0.010] * 9, True),
        # One outlier is no median.
        ([0.010] * 9 + [5.0], [0.010] * 10, False),
        # Ten times slower, and still faster than anybody notices.
        ([FLOOR] * 9, [FLOOR / 10] * 9, False),
        # Nothing served that it could be compared with.
        ([0.100] * 9, [], False),
    ],
)
def test_slower_than_what_serves_is_refused(new: list[float], old: list[float], refused: bool) -> None:
    assert bool(verdict(new, old)) is refused


def test_the_reason_names_both_medians() -> None:
    assert verdict([0.1], [0.01]) == "the median answer takes 100 ms, and 10 ms from the release that serves"


def test_the_conversation_has_as_many_requests_as_asked_and_of_every_kind() -> None:
    steps = list(conversation(200))
    assert len(steps) == 200
    assert set(Counter(step.method for step in steps)) == {"POST", "GET", "DELETE"}
