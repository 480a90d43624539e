"""What a rollout makes of the figures of the release that serves and the one that took over."""

import pytest

import arches_rollout
from arches_rollout import ENOUGH, ERRORS, FEW, FLOOR, Figures, read_figures, too_many_errors, too_slow

METRICS = """\
# HELP arches_http_requests_total Answered requests
arches_http_requests_total{method="GET",route="/v1/me",status="200"} 190.0
arches_http_requests_total{method="POST",route="/v1/artifacts",status="503"} 10.0
arches_http_requests_total{method="GET",route="/health/live",status="503"} 99.0
arches_http_request_seconds_bucket{le="0.1",method="GET",route="/v1/me"} 180.0
arches_http_request_seconds_bucket{le="0.2",method="GET",route="/v1/me"} 190.0
arches_http_request_seconds_bucket{le="+Inf",method="GET",route="/v1/me"} 190.0
arches_http_request_seconds_bucket{le="0.1",method="POST",route="/v1/artifacts"} 0.0
arches_http_request_seconds_bucket{le="0.2",method="POST",route="/v1/artifacts"} 10.0
arches_http_request_seconds_bucket{le="+Inf",method="POST",route="/v1/artifacts"} 10.0
arches_http_request_seconds_sum{method="GET",route="/v1/me"} 3.0
"""


INF = float("inf")


def answers(count: float, errors: float = 0, seconds: float = 0.02) -> Figures:
    """So many answers, each of which took at most so long."""
    return Figures(count, errors, {seconds / 2: 0, seconds: count, float("inf"): count})


def test_metrics_are_added_up_without_health_checks() -> None:
    figures = read_figures(METRICS)
    assert (figures.answers, figures.errors) == (200, 10)
    assert figures.buckets == {0.1: 180, 0.2: 200, float("inf"): 200}


def test_the_percentile_lies_inside_its_bucket_as_prometheus_says() -> None:
    # histogram_quantile(0.99): rank 198 of 200, between 180 (0.1 s) and 200 (0.2 s).
    assert read_figures(METRICS).quantile(0.99) == pytest.approx(0.1 + 0.1 * 18 / 20)
    assert Figures().quantile(0.99) == 0
    # Beyond the last limit nobody knows how long it took: the limit.
    assert Figures(10, 0, {1.0: 5, float("inf"): 10}).quantile(0.99) == 1.0


def test_figures_are_added_and_taken_away() -> None:
    both = answers(100, 2) + answers(50, 1)
    assert (both.answers, both.errors) == (150, 3)
    assert both - answers(50, 1) == answers(100, 2)
    assert arches_rollout.unpack(arches_rollout.pack(both)) == both


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (answers(1000), ""),
        # A few errors among many answers happen; many errors, and few answers, do not.
        (answers(1000, errors=10), ""),
        (answers(1000, errors=11), "11 of its 1000 answers were errors (1.1 %)"),
        (answers(ERRORS - 1, errors=ERRORS - 1), ""),
        (answers(ERRORS, errors=ERRORS), "5 of its 5 answers were errors (100.0 %)"),
    ],
)
def test_errors_are_counted_and_weighed(now: Figures, says: str) -> None:
    assert too_many_errors(now) == says


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (answers(1000, seconds=0.2), answers(1000, seconds=0.6), ""),
        (answers(1000, seconds=0.2), answers(1000, seconds=10), "its median is 7500 ms, and was 150 ms before"),
        # A few were slow before; now all are.
        (Figures(1000, 0, {0.1: 950, 1: 1000, INF: 1000}), answers(1000), ""),
        (
            Figures(1000, 0, {0.1: 950, 1: 1000, INF: 1000}),
            Figures(1000, 0, {0.5: 0, 1: 1000, INF: 1000}),
            "its median is 750 ms, and was 53 ms before",
        ),
        (answers(1000), answers(970) + answers(30, seconds=4), "its 99th percentile is 4000 ms, and was 20 ms before"),
        # Slower, and still fast.
        (answers(1000, seconds=FLOOR / 10), answers(1000, seconds=FLOOR), ""),
        # Too little is known, on either side.
        (answers(1000, seconds=0.2), answers(FEW - 1, seconds=10), ""),
        (answers(FEW - 1, seconds=0.2), answers(1000, seconds=10), ""),
        (answers(1000), answers(ENOUGH - 10) + answers(9, seconds=4), ""),
        # A slow host is given little to do.
        (answers(1000, seconds=0.2), answers(FEW, seconds=10), "its median is 7500 ms, and was 150 ms before"),
    ],
)
def test_speed_is_held_against_the_release_before(before: Figures, now: Figures, says: str) -> None:
    assert too_slow(before, now) == says
