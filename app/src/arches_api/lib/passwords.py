"""Password hashing, off the event loop and bounded in memory."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from .problems import unavailable

THREADS = 2  # each hash takes 19 MiB and about 20 ms of a core
QUEUE = 100  # callers beyond this are turned away: about a second of work

# The most common passwords of at least eight characters; guessing starts with these.
COMMON = frozenset(Path(__file__).with_name("common_passwords.txt").read_text().split())


class Passwords:
    """argon2id with 19 MiB, two passes, one lane (the OWASP figure)."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        self._dummy = self._hasher.hash("nobody's password")

    async def hash(self, password: str) -> str:
        """The hash to store. Raises Problem 503 when too many wait already."""
        return await self._run(partial(self._hasher.hash, password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """True when the password fits. `stored=None` (no such user) takes as long and is False."""
        fits = await self._run(partial(self._verify, stored or self._dummy, password))
        return fits and stored is not None

    def needs_rehash(self, stored: str) -> bool:
        """True when the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Lets running hashes finish; no new ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run[T](self, work: partial[T]) -> T:
        if self._waiting >= QUEUE:
            raise unavailable("Too many people are logging in.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1
