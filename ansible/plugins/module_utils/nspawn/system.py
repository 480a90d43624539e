"""The few ways in which the other modules touch the operating system."""

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class NspawnError(Exception):
    """One clear sentence for the person at the terminal: what is wrong, where, and what to do about it."""


def run(*argv: str | Path, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it printed.

    Raises NspawnError with the command's own words when it fails and `check` is set.
    """
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise NspawnError(f"`{' '.join(words)}` ended with {done.returncode}: {said}")
    return done


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Poll `condition` until it holds or `seconds` have passed; return whether it held."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def write_file(path: Path, text: str, mode: int = 0o644, owner: tuple[int, int] | None = None) -> bool:
    """Put `text` into `path` by rename, so that nobody sees half of it; return whether anything changed."""
    if path.is_file() and not path.is_symlink() and path.read_text() == text and path.stat().st_mode & 0o7777 == mode:
        return False
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as out:
        os.fchmod(out.fileno(), mode)
        if owner:
            os.fchown(out.fileno(), *owner)
        out.write(text)
    new.rename(path)
    return True


@contextlib.contextmanager
def locked(path: Path, seconds: float, what: str) -> Iterator[None]:
    """Hold the lock file `path`; raises NspawnError when another run keeps `what` busy for longer than `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as lock:

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_until(taken, seconds, pause=0.1):
            lock.seek(0)
            raise NspawnError(
                f"{what} is busy: process {lock.read().strip() or '?'} has held {path} for {seconds:.0f} s. "
                "Wait for that run to end, or end it, then start again."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
