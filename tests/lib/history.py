"""A write load outside the fleet with an append-only history, and the judgement of that history.

Every operation is written down before it is sent (``invoke``) and after its answer (``ok``, ``fail`` or ``unknown``).
Only an acknowledged write (``ok``) that is missing afterwards is a loss; ``unknown`` may go either way.
"""

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["ok", "fail", "unknown"]
Event = Literal["invoke", "ok", "fail", "unknown"]


@dataclass(frozen=True)
class Entry:
    """One line of a history; ``at`` is the monotonic time in seconds, ``value`` what the server said (an id)."""

    key: str
    event: Event
    at: float
    value: str | None = None


class History:
    """Append-only log of operations, flushed to disk line by line; safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.entries: list[Entry] = []

    def record(self, key: str, event: Event, value: str | None = None) -> None:
        """Append one event; it is on disk when this returns."""
        with self._lock:
            entry = Entry(key, event, time.monotonic(), value)
            self._file.write(json.dumps(entry.__dict__) + "\n")
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self.entries.append(entry)

    def acknowledged(self) -> dict[str, str]:
        """Server's value by key for every acknowledged operation."""
        return {e.key: e.value or "" for e in self.entries if e.event == "ok"}

    def counts(self) -> Counter[str]:
        """How many operations were invoked, acknowledged, refused or left unknown."""
        return Counter(e.event for e in self.entries)

    def longest_gap_s(self, since: float, until: float) -> float:
        """Longest time in seconds between two acknowledged writes inside a window of monotonic times."""
        moments = [since, *(e.at for e in self.entries if e.event == "ok" and since <= e.at <= until), until]
        moments.sort()
        return max(after - before for before, after in itertools.pairwise(moments))


def lost(history: History, present: set[str]) -> list[str]:
    """Keys of acknowledged writes whose value is not among the ``present`` values."""
    return [key for key, value in history.acknowledged().items() if value not in present]


class WriteLoad:
    """Threads that write one after the other until stopped, each write recorded in the history.

    :param write: does one write for a key and returns the outcome and the server's value; must not raise.
    :param workers: number of threads, each with its own sequence of keys.
    """

    def __init__(
        self,
        history: History,
        write: Callable[[str], tuple[Outcome, str | None]],
        workers: int = 4,
        pause_s: float = 0.02,
    ) -> None:
        self._history, self._write, self._pause = history, write, pause_s
        self._stop = threading.Event()
        # A second load on one history has keys of its own.
        self._begun = len(history.entries)
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(workers)]

    def __enter__(self) -> "WriteLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _run(self, worker: int) -> None:
        sequence = 0
        while not self._stop.wait(self._pause):
            key = f"{self._begun}-w{worker}-{sequence}"
            self._history.record(key, "invoke")
            outcome, value = self._write(key)
            self._history.record(key, outcome, value)
            sequence += 1
