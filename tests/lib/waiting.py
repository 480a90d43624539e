"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable


def wait_for[T](what: str, probe: Callable[[], T], timeout_s: float, interval_s: float = 0.2) -> T:
    """Call ``probe`` until it returns something true and return that.

    :param what: the awaited state, for the error message.
    :param probe: cheap, side-effect free; may raise OSError or AssertionError while the state is not reached.
    :param timeout_s: seconds after which the wait fails.
    :param interval_s: seconds between two probes.
    :raises TimeoutError: naming ``what``, with the last value or error seen.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            value = probe()
            if value:
                return value
            last = value
        except (OSError, AssertionError) as error:
            last = error
        time.sleep(interval_s)
    raise TimeoutError(f"{what}: not within {timeout_s} s (last: {last!r})")
