"""A checklist that does itself: each point passes, fails or is skipped, and says why."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class Skipped(Exception):
    """A point that cannot be looked at here; the message says why."""


class Failed(Exception):
    """A point that is not as it should be; the message says what, and what to do."""


class Point(NamedTuple):
    """One line: what should be so, and the function that says how it is (or raises Skipped or Failed)."""

    what: str
    look: Callable[[], str]


def run(points: Iterable[Point]) -> int:
    """Look at all points and print a line for each; the exit status: 1 when one has failed."""
    failed = False
    for point in points:
        try:
            result, why = "pass", point.look()
        except Skipped as reason:
            result, why = "skip", str(reason)
        except Failed as reason:
            result, why, failed = "FAIL", str(reason), True
        print(f"{result}  {point.what}: {why}", flush=True)
    return 1 if failed else 0


def output(*command: str | Path, timeout_s: float = 300) -> str:
    """What a command prints. Raises Failed with its last words, Skipped when it is not installed."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise Skipped(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} gave no answer within {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failed(said[-1] if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout.strip()


def ours(name: str) -> Path:
    """A program of the project's environment."""
    return Path(sys.executable).with_name(name)
