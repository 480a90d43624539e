"""What a release has to show before it serves."""

from collections import Counter

import httpx
import pytest

from arches_api.preflight import COMPARED, FLOOR, ROUND, Party, conversation, converse, verdict


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


def party(asked: list[str], broken: bool = False) -> Party:
    """A server that answers what is expected of it, or refuses everything, and remembers what it was asked."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        status = 503 if broken else {"POST": 201, "GET": 200, "DELETE": 204}[request.method]
        return httpx.Response(status, json={"id": "1"})

    return Party(httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://api"))


@pytest.mark.parametrize("requests", [20, 200, 1000])
async def test_what_serves_is_asked_often_enough_for_a_median_and_the_same(requests: int) -> None:
    new: list[str] = []
    old: list[str] = []
    assert await converse(party(new), party(old), {}, requests)
    assert len(new) == requests
    assert min(requests, COMPARED) <= len(old) < COMPARED + 2 * ROUND
    assert Counter(old) == {
        method: len(old) // ROUND * times for method, times in {"POST": 1, "GET": 2, "DELETE": 1}.items()
    }


async def test_a_server_that_is_broken_is_asked_once_and_stops_nobody() -> None:
    new: list[str] = []
    old: list[str] = []
    assert not await converse(party(new), party(old, broken=True), {}, 20)
    assert (len(new), len(old)) == (20, 1)
