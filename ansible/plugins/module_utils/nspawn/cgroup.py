"""Control groups: one per machine, so that its processes are found, limited and ended together.

Two layouts. Where systemd is PID 1 of this computer it owns the tree, and a machine is a delegated scope. Elsewhere
(minimal virtual machines, CI runners) a machine's groups are made by hand in every mounted hierarchy.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from .system import run, wait_until, write_file

SYSTEMD = Path("/run/systemd/system")
_V1_CONTROLLERS = ("name=systemd", "memory", "cpu", "cpuacct", "pids")
# What all machines together get of contended cores, where any other group gets 100: elsewhere whoever works on hosts
# does so from another computer, and takes nothing from those who serve.
_WEIGHT = 1000


def _hierarchies() -> list[Path]:
    """Return the caller's own group in every hierarchy that matters, the unified one (v2) last."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    found: dict[str, Path] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, options, *_ = line.split()
        names = set(options.split(",")) if kind == "cgroup" else {""} if kind == "cgroup2" else set()
        for controller in (*_V1_CONTROLLERS, ""):
            if controller in names and controller in own and controller not in found:
                # Called from inside a machine's group (a keeper's child) the path would nest for ever.
                path = re.sub(r"/arches/.*", "", own[controller])
                found[controller] = Path(mount_point) / path.strip("/")
    return list(dict.fromkeys(found[key] for key in (*_V1_CONTROLLERS, "") if key in found))


def _unified() -> Path:
    """Return the mount point of the unified hierarchy."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), Path("/sys/fs/cgroup"))


class HandMadeGroups:
    """Groups `arches/<machine>` below the caller's own group, in the hybrid layout (or v1, or v2 without systemd).

    Another run may be in another group, so `record` is the file that says where this machine's groups are.
    """

    def __init__(self, machine: str, record: Path) -> None:
        self._record = record
        if record.exists():
            self.paths = [Path(line) for line in record.read_text().splitlines()]
        else:
            self.paths = [parent / "arches" / machine for parent in _hierarchies()]

    def command(self) -> list[str]:
        """Return the command prefix that starts a keeper: none, it enters the groups itself."""
        return []

    def where(self) -> str:
        """Return a shell word list of the groups that the keeper enters."""
        return " ".join(map(str, self.paths))

    def limit(self, memory_mb: int, cpus: float) -> None:
        """Make the groups and limit them: MiB of memory and cores of the whole machine, also of a running one."""
        quota, period = int(cpus * 100_000), 100_000
        limits = {
            "memory.limit_in_bytes": str(memory_mb * 2**20),
            "memory.max": str(memory_mb * 2**20),
            "cpu.cfs_quota_us": str(quota),
            "cpu.max": f"{quota} {period}",
        }
        shares = {"cpu.shares": str(_WEIGHT * 1024 // 100), "cpu.weight": str(_WEIGHT)}
        write_file(self._record, "".join(f"{path}\n" for path in self.paths))
        for path in self.paths:
            wait_until(partial(_made, path), seconds=1)
            _write(path.parent, shares)
            _write(path, limits)

    def remove(self) -> None:
        """Remove the groups of a machine whose processes have ended, as soon as the kernel lets them go."""
        wait_until(lambda: not _remove_trees(self.paths), seconds=2)
        for path in self.paths:
            with contextlib.suppress(OSError):  # another machine is in there
                path.parent.rmdir()
        self._record.unlink(missing_ok=True)


class SystemdScope:
    """A delegated scope `arches-<machine>.scope`, made by the systemd that is PID 1 of this computer."""

    def __init__(self, machine: str) -> None:
        self.unit = f"arches-{machine}.scope"
        self._properties: list[str] = []

    def command(self) -> list[str]:
        """Return the command prefix that starts a keeper in a scope of its own."""
        properties = [f"--property={text}" for text in ("Delegate=yes", *self._properties)]
        return [
            "systemd-run",
            "--scope",
            "--quiet",
            "--collect",
            "--slice=arches",
            f"--unit={self.unit}",
            f"--description=Local machine {self.unit}",
            *properties,
            "--",
        ]

    def where(self) -> str:
        """Return a shell expression for the group that systemd made; the keeper evaluates it inside."""
        return f"{_unified()}$(sed -n 's/^0:://p' /proc/self/cgroup)"

    def limit(self, memory_mb: int, cpus: float) -> None:
        """Limit the scope that is, or the one that will be: MiB of memory and cores of the whole machine."""
        run("systemctl", "set-property", "--runtime", "arches.slice", f"CPUWeight={_WEIGHT}")
        self._properties = [f"MemoryMax={memory_mb}M", f"CPUQuota={int(cpus * 100)}%"]
        if run("systemctl", "is-active", "--quiet", self.unit, check=False).returncode == 0:
            run("systemctl", "set-property", "--runtime", self.unit, *self._properties)

    def remove(self) -> None:
        """Nothing to do: systemd collects an empty scope."""


type Groups = HandMadeGroups | SystemdScope


def groups_for(machine: str, record: Path) -> Groups:
    """Return the machine's control groups in the layout of this computer."""
    return SystemdScope(machine) if SYSTEMD.is_dir() else HandMadeGroups(machine, record)


def _made(path: Path) -> bool:
    """Make a group; False when another machine removed the emptied group above meanwhile."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        return False
    return True


def _write(group: Path, values: Mapping[str, str]) -> None:
    """Set what a group has: the controllers and their names differ from layout to layout."""
    for name, value in values.items():
        if (group / name).exists():
            (group / name).write_text(value)


def _remove_trees(paths: Iterable[Path]) -> list[Path]:
    """Remove groups from the leaves up; return those that are still busy."""
    busy = []
    for path in paths:
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                busy.append(Path(folder))
    return busy
