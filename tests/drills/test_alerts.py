"""Each alert, caused on the running fleet, reaches its receiver in time and is resolved when its cause is gone.

ALERTS chooses: nothing is the core, `all` is everything, names with spaces between are these.
"""

import os

import pytest

from drills.alerts import DRILLS, chosen
from lib.drill import run_wave, waves
from lib.fleet import Fleet
from lib.webhook import Webhook

WAVES = waves(chosen(os.environ.get("ALERTS", "")))


@pytest.mark.parametrize("wave", WAVES, ids="+".join)
def test_alerts_arrive_in_time_and_are_resolved(wave: list[str], healthy: Fleet, webhook: Webhook) -> None:
    problems = run_wave(healthy, webhook, wave, DRILLS)
    assert not problems, "\n".join(problems)
