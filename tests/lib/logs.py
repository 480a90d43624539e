"""Lines that a test writes on a host of the fleet, and the fleet's Loki."""

import shlex

from lib.fleet import Fleet
from lib.loki import Loki

# Writes COUNT numbered lines, RATE a second, each with the time at which it was written (seconds since 1970).
WRITER = """
import sys, time
word, rate, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
start = time.time()
for number in range(count):
    time.sleep(max(0.0, start + number / rate - time.time()))
    print(f"{word} {number} {time.time():.3f}", flush=True)
"""


def fleet_loki(fleet: Fleet) -> Loki:
    """The fleet's Loki, asked from its own host."""
    host = fleet.groups["ops"][0]
    url = f"https://{fleet.address(host)}:{fleet.ports('loki', host)[0]}"
    return Loki(lambda command, text: fleet.ssh(host, command, stdin=text).stdout, url)


def write_lines(fleet: Fleet, host: str, word: str, rate: float, seconds: float) -> None:
    """Start a unit `lines-<word>.service` that writes rate * seconds lines; returns at once."""
    words = ["python3", "-c", WRITER, word, str(rate), str(int(rate * seconds))]
    fleet.ssh(host, f"systemd-run --quiet --collect --unit lines-{word} " + shlex.join(words))


def written(fleet: Fleet, host: str, word: str) -> int:
    """How many lines of that unit are in the host's own journal."""
    return int(fleet.ssh(host, f"journalctl -q -o cat -u lines-{word} | grep -c '^{word} '", check=False).stdout or 0)
