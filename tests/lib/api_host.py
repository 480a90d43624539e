"""An API host as the role's tests look at it: its instances, what they have answered, a stream of requests to it."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from testinfra.host import Host  # type: ignore[import-untyped]

from lib.waiting import wait_for

INSTANCES = ("api@1", "api@2")


def property_of(host: Host, unit: str, name: str) -> str:
    """A property of a unit, as systemd says it."""
    return str(host.check_output("systemctl show --property=%s --value %s", name, unit))


def pids(host: Host) -> list[str]:
    """Main process of each instance."""
    return [property_of(host, unit, "MainPID") for unit in INSTANCES]


def answered(host: Host, port: int) -> float:
    """Answers of one instance so far, by its own metrics, which are read on the host only."""
    ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    lines = host.check_output("python3 -c %s", ask).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("arches_http_requests_total{"))


@contextmanager
def stream(api: httpx.Client, workers: int = 4) -> Iterator[Counter[str]]:
    """Requests without a pause, half of them POST, each on a connection of its own; counts what came back."""
    outcomes: Counter[str] = Counter()
    ends = threading.Event()

    def ask(number: int) -> None:
        while not ends.is_set():
            try:
                if number % 2:
                    outcome = str(api.get("/health/live").status_code)
                else:
                    # Refused by the first check of the body: cheap, and never stored twice.
                    outcome = str(api.post("/v1/auth/login", json={"email": 1}).status_code)
            except httpx.HTTPError as error:
                outcome = repr(error)
            outcomes[outcome] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        wait_for("requests are under way", lambda: outcomes.total() > workers, timeout_s=30)
        yield outcomes
    finally:
        ends.set()
        for thread in threads:
            thread.join()
