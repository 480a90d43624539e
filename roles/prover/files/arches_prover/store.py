"""What lies in the store, asked by pgBackRest with the account that may only read."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arches_prover.errors import NotProven, StoreAway
from arches_prover.settings import DATA, SCRATCH, Settings

# How pgBackRest says that the store cannot be reached; whatever else it says does not get better by waiting. Its exit
# status is the same for both.
AWAY = re.compile(r"HostConnectError|ServiceError|timeout|unexpected eof|HTTP request failed with 5\d\d", re.IGNORECASE)
# How it says that it read something else than it wrote.
UNREADABLE = re.compile(r"CryptoError|FormatError|ChecksumError")


@dataclass(frozen=True)
class Backup:
    """The newest backup in the store, and the newest WAL segment beside it.

    :param kind: full, diff or incr.
    :param finished: seconds since 1970.
    :param size_bytes: of the databases, restored.
    :param has_errors: whether pgBackRest met damaged pages when it made it.
    """

    label: str
    kind: str
    finished: int
    size_bytes: int
    has_errors: bool
    newest_wal: str


def pgbackrest(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pgBackRest; warnings and errors are on stderr."""
    config = Path(os.environ["CREDENTIALS_DIRECTORY"], "pgbackrest.conf")
    return subprocess.run(
        ["pgbackrest", f"--config={config}", f"--stanza={settings.stanza}", *words],
        check=False, capture_output=True, text=True, errors="replace",
    )  # fmt: skip


def short(text: str) -> str:
    """What a program's words say is wrong, without headers of HTTP and hints: a line, and what its colon announces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no words"]
    first = next((n for n, line in enumerate(lines) if re.search(r"Error\b|ERROR|FATAL|PANIC", line)), 0)
    last = first
    while lines[last].endswith(":") and last + 1 < len(lines):
        last += 1
    return " ".join(lines[first : last + 1])[:400]


def fault(text: str) -> NotProven:
    """What pgBackRest's words mean."""
    if AWAY.search(text):
        return StoreAway(short(text))
    hint = ": damaged, or the passphrase is not the one it was written with" if UNREADABLE.search(text) else ""
    return NotProven(short(text) + hint)


def patiently[T](attempt: Callable[[], T], patience_s: float) -> T:
    """What an attempt returns. While the store is away it is made again, for ``patience_s`` after the first failure.

    :raises NotProven: for any other reason, or when the store did not come back.
    """
    away_since: float | None = None
    while True:
        try:
            return attempt()
        except StoreAway as away:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > patience_s:
                raise NotProven(f"the store did not come back within {patience_s:.0f} s: {away}") from away
            print(f"the store is away, trying again: {away}", file=sys.stderr, flush=True)
            time.sleep(1)


def newest_backup(settings: Settings) -> Backup:
    """Ask the store. `info` ends with status 0 whatever happens; its document says more.

    :raises StoreAway: when it could not be asked.
    :raises NotProven: when there is no backup, or the store cannot be read.
    """
    done = pgbackrest(settings, "info", "--output=json")
    if done.returncode:
        raise fault(done.stderr)
    return parse_info(done.stdout)


def parse_info(text: str) -> Backup:
    """The newest backup of the document of `info`.

    :raises StoreAway: when it says so.
    :raises NotProven: when there is no backup, or the store cannot be read.
    """
    # Not strict: it quotes what it could not decrypt.
    stanza = json.loads(text, strict=False)[0]
    # 0 is well, 1 to 3 are ways to have no backup; what is 99 is said of the repository.
    if stanza["status"]["code"] == 99:
        raise fault("\n".join(repository["status"]["message"] for repository in stanza["repo"]))
    if not stanza["backup"]:
        raise NotProven(f"there is no backup in the store ({stanza['status']['message']})")
    newest = max(stanza["backup"], key=lambda backup: backup["timestamp"]["stop"])
    segments = [a["max"] for a in stanza["archive"] if a["database"] == newest["database"] and a["max"]]
    return Backup(
        label=newest["label"],
        kind=newest["type"],
        finished=newest["timestamp"]["stop"],
        size_bytes=newest["info"]["size"],
        has_errors=bool(newest["error"]),
        newest_wal=max(segments, default=newest["archive"]["stop"]),
    )


def restore(settings: Settings, backup: Backup) -> None:
    """Copy the backup's files to the scratch folder; a second attempt goes on where the first one stopped.

    :raises StoreAway: when the store was away for longer than pgBackRest's own patience.
    :raises NotProven: for any other reason.
    """
    DATA.mkdir(mode=0o700, exist_ok=True)
    again = ["--delta"] if any(DATA.iterdir()) else []
    # Never archive: the copy would write a timeline of its own into the fleet's archive.
    done = pgbackrest(
        settings, "restore", f"--set={backup.label}", "--archive-mode=off",
        f"--tablespace-map-all={SCRATCH / 'tablespaces'}", *again,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise fault(done.stderr)


def fetch_wal(settings: Settings, newest: str, name: str, path: str) -> int:
    """Fetch one file of the archive for the copy; the status is for Postgres.

    1 says that the archive ends here, so it is never said when the store is away or a file cannot be read: above 125
    Postgres gives up instead of going on without it. What was archived after the proof began is left out: the copy is
    what could have been restored at that moment.
    """
    number = name.partition(".")[0]
    if number > newest[: len(number)]:
        return 1

    def attempt() -> int:
        done = pgbackrest(settings, "archive-get", name, path)
        if done.returncode not in (0, 1):
            raise fault(done.stderr)
        return done.returncode

    try:
        return patiently(attempt, settings.patience_s)
    except NotProven as error:
        print(f"ERROR: {name} of the archive: {error}", file=sys.stderr)
        return 255
