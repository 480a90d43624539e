"""Figures of logs: how soon a line can be found, and whether a busy unit's lines all arrive."""

import contextlib
import secrets
import statistics
import time
from typing import Any

from lib.fleet import Fleet
from lib.logs import fleet_loki, write_lines
from lib.waiting import wait_for


def log_line_to_queryable(fleet: Fleet, host: str = "api1", repeats: int = 20) -> list[float]:
    """Seconds from writing a line on a host until Loki finds it, once for each repeat; one question is about 0.1 s."""
    loki = fleet_loki(fleet)
    taken = []
    for _ in range(repeats):
        word = secrets.token_hex(6)
        fleet.ssh(host, f"logger -t bench {word}")
        started = time.monotonic()
        query = f'{{host="{host}"}} |~ `^{word}`'
        wait_for("the line", lambda q=query: loki.lines(q, since_s=60), timeout_s=30, interval_s=0.1)
        taken.append(time.monotonic() - started)
    return taken


def p95(values: list[float]) -> float:
    """The value that 95 of 100 are below."""
    return statistics.quantiles(values, n=20)[-1]


def busy_unit(fleet: Fleet, host: str = "api1", rate: int = 300, seconds: int = 60) -> dict[str, Any]:
    """One unit writes `rate` lines a second: how many came, were lost, came twice, and the seconds until then."""
    loki, word = fleet_loki(fleet), secrets.token_hex(6)
    query = f'{{host="{host}", unit="lines-{word}.service"}} |~ `^{word} [0-9]+ `'
    count = rate * seconds
    started = time.monotonic()
    write_lines(fleet, host, word, rate, seconds)
    # Lines that never come are the figure, not a failure.
    with contextlib.suppress(TimeoutError):
        wait_for("all lines", lambda: loki.count(query) >= count, timeout_s=seconds + 60, interval_s=2)
    texts = loki.texts(query)
    arrived = len(set(texts))
    return {
        "written": count, "arrived": arrived, "lost": count - arrived, "twice": len(texts) - arrived,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
