"""The restore prover: restores the newest backup, replays the archived WAL, asks the copy what it knows.

    prove                   what arches-prover.service runs, as postgres; status 1 when there is no proof
    publish                 metrics of the last report, as root, whatever became of the attempt
    wal NEWEST NAME PATH    restore_command of the copy: the archive as it was when the attempt began

A copy is never left: what a killed attempt could not remove, the next one removes first.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from arches_prover import report as reports
from arches_prover.checks import all_checks
from arches_prover.errors import NotProven
from arches_prover.report import Report
from arches_prover.scratch import Copy, configure, drop, room
from arches_prover.settings import MIB, SCRATCH, Settings
from arches_prover.store import fetch_wal, newest_backup, patiently, restore

# Less than a segment of WAL.
FULL_BYTES = 16 * MIB


def attempt(settings: Settings, report: Report) -> None:
    """Restore, replay, check; the copy is dropped whatever happens.

    :raises NotProven: saying why.
    """

    def timed(step: str, act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        report.seconds[step] = round(time.monotonic() - began, 1)

    def check() -> None:
        report.checks, report.rpo_s = all_checks(settings, backup, report.started)

    drop()
    try:
        backup = patiently(lambda: newest_backup(settings), settings.patience_s)
        report.backup = backup
        room(settings, backup, shutil.disk_usage(SCRATCH).free)
        timed("restore", lambda: patiently(lambda: restore(settings, backup), settings.patience_s))
        configure(settings, backup)
        with Copy() as copy:
            timed("replay", copy.wait_until_promoted)
            timed("checks", check)
    except (NotProven, OSError) as error:
        # Nobody says so by itself: a program that wrote half of what it wanted knows no reason.
        if shutil.disk_usage(SCRATCH).free < FULL_BYTES:
            raise NotProven(f"{SCRATCH} is full: {error}") from error
        raise
    finally:
        drop()
    if failed := [f"{check.name}: {check.why}" for check in report.checks if not check.passed]:
        raise NotProven("; ".join(failed))


def stopped(number: int, _: FrameType | None) -> None:
    """Time is up, memory ran out, or somebody stops the service."""
    signal.signal(number, signal.SIG_IGN)
    raise NotProven(f"stopped by {signal.Signals(number).name} before it was done")


def prove() -> int:
    """One attempt with its report; status 0 for a proof."""
    signal.signal(signal.SIGTERM, stopped)
    report = Report(started=time.time(), last_proven=reports.read().get("last_proven"))
    report.write()
    try:
        attempt(Settings.read(), report)
        report.proven, report.why = True, "every check passed"
    # OSError: a full disk, a program that is missing.
    except (NotProven, OSError) as error:
        report.why = str(error)
    report.finished = time.time()
    if report.proven and report.backup:
        duration = round(report.finished - report.started, 1)
        report.last_proven = {
            "at": report.finished, "duration_s": duration, "rpo_s": report.rpo_s, "backup": report.backup.label,
        }  # fmt: skip
    report.write()
    print(f"{'proven' if report.proven else 'NOT PROVEN'}: {report.why}", flush=True)
    return 0 if report.proven else 1


def publish() -> int:
    """Metrics of the last report; an attempt that systemd saw fail has failed, whatever its report could still say."""
    ended_well = os.environ.get("SERVICE_RESULT", "success") == "success"
    reports.replace(reports.METRICS, reports.metrics(reports.read(), ended_well, Settings.read().interval_s))
    return 0


def main(words: Sequence[str]) -> int:
    """The three verbs."""
    match words:
        case ["prove"]:
            return prove()
        case ["publish"]:
            return publish()
        case ["wal", newest, name, path]:
            return fetch_wal(Settings.read(), newest, name, path)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
