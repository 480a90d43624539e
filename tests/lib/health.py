"""A fleet is healthy before each test that touches it, and after it."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

from lib.fleet import Fleet
from lib.waiting import wait_for


class Health:
    """What is known of a fleet: asking takes ten seconds, and what one test left healthy the next one finds so."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.known = False

    @contextmanager
    def kept(self) -> Iterator[Fleet]:
        """Healthy before and after what is done in it. Raises TimeoutError, and prints what the hosts say."""
        if not self.known:
            wait_for("the fleet is healthy before the test", self.fleet.healthy, timeout_s=90, interval_s=1)
        self.known = False
        started = datetime.datetime.now(datetime.UTC)
        yield self.fleet
        try:
            wait_for("the fleet is healthy again after the test", self.fleet.healthy, timeout_s=120, interval_s=1)
        except TimeoutError:
            self._tell(started)
            raise
        self.known = True

    def _tell(self, since: datetime.datetime) -> None:
        print(self.fleet.status()[1])
        for host in self.fleet.groups["all"]:
            errors = self.fleet.ssh(
                host, f"journalctl --utc --since '{since:%Y-%m-%d %H:%M:%S}' -p warning -n 15 -o cat", check=False
            )
            print(f"--- {host}\n{errors.stdout or errors.stderr}")
