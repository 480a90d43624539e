"""Which processes belong to which machine, read from /proc.

A machine's processes are found by the name of their control group. That also finds those whose parent is gone, and
needs no pid file that could be stale.
"""

import os
import re
import threading
import time
from dataclasses import dataclass, field

_PROC = "/proc"
# The machine's own group is the outermost one; `part` and `rest` say where in it the process is.
_GROUP = re.compile(
    r"^0::/(?:.*?/)??arches(?:/|-)(?P<machine>[a-z0-9-]+)(?:\.scope)?(?:/(?P<part>\w+))?(?P<rest>/.*)?$", re.MULTILINE
)
_STATUS = re.compile(r"^(Name|State|NSpid):\t(.*)$", re.MULTILINE)


@dataclass
class Processes:
    """The live processes of one machine, by their part in it (process ids as this computer sees them)."""

    keeper: int | None = None  # starts systemd-nspawn again when the guest reboots
    supervisor: int | None = None  # systemd-nspawn itself
    init: int | None = None  # the guest's PID 1
    all: list[int] = field(default_factory=list)


_lock = threading.Lock()
_last: tuple[float, dict[str, Processes]] = (float("-inf"), {})


def scan_shared(seconds: float) -> dict[str, Processes]:
    """Return what `scan` returned at most `seconds` ago: machines that are waited for side by side share the work."""
    global _last
    with _lock:
        if time.monotonic() - _last[0] > seconds:
            _last = (time.monotonic(), scan())
        return _last[1]


def scan() -> dict[str, Processes]:
    """Read /proc once and return the processes of every machine on this computer, by full machine name.

    Only the few processes that keep, supervise or are a machine are looked at closely: a guest may have hundreds.
    """
    found: dict[str, Processes] = {}
    for pid in os.listdir(_PROC):
        groups = _read(f"{_PROC}/{pid}/cgroup") if pid.isdigit() else ""
        match = _GROUP.search(groups)
        # A removed group holds only the dead that nobody has reaped yet.
        if match is None or (match["rest"] or "").endswith(" (deleted)"):
            continue
        processes = found.setdefault(match["machine"], Processes())
        if match["part"] == "payload" and match["rest"] not in (None, "/init.scope"):
            processes.all.append(int(pid))
            continue
        status = dict(_STATUS.findall(_read(f"{_PROC}/{pid}/status")))
        if not status or status["State"][0] in "ZX":
            continue
        processes.all.append(int(pid))
        if match["part"] == "keeper":
            processes.keeper = int(pid)
        elif status["Name"] == "systemd-nspawn":
            processes.supervisor = int(pid)
        elif status["NSpid"].split()[1:] == ["1"]:
            processes.init = int(pid)
    return {machine: processes for machine, processes in found.items() if processes.all}


def _read(path: str) -> str:
    """Return a small file's text; nothing when its process has ended meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
