"""Where a host's disks are short of room, what takes it, and what may go at any hour.

    - {name: See how much room there is, disk_room: {step: look, below: 15, wal: /var/lib/postgresql/17/arches/pg_wal}}
    - {name: Make room, disk_room: {step: free, below: 15}}

Only what holds files that stay counts: the root and what is mounted below /var, /srv, /home, /opt. `free` removes on
those that have less than `below` percent free, and nothing else: journal files beyond the newest `JOURNAL_KEPT`,
downloaded packages, logs that were rotated away, and core dumps. Postgres' WAL is never touched.

Results of look: short (mount point to free, size and percent), may_go (bytes on those), lines (all of it in words, with
the folders that take most, and the WAL of `wal` while something of it waits for the archive). Of free: freed (bytes).
"""

from __future__ import annotations

import os
import stat
import typing as t
from collections.abc import Iterable, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.recovery_target import amount

KEPT_BELOW = ("/var", "/srv", "/home", "/opt")
JOURNAL = "/var/log/journal"
JOURNAL_KEPT = 200 << 20
# What may go: folder, and how its files' names end.
REMOVABLE = {
    "downloaded packages": ("/var/cache/apt/archives", (".deb",)),
    "rotated logs": ("/var/log", (".gz", ".xz", ".zst", ".1", ".old")),
    "core dumps": ("/var/lib/systemd/coredump", ("",)),
}
LARGEST = 5
# Fewer files that wait for the archive are nothing to speak of.
WAITING = 5


def decoded(field: str) -> str:
    """A mount point as /proc/mounts writes it, with blanks again."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def mounts(table: str) -> list[str]:
    """Mount points that hold files that stay and can be written, from the text of /proc/mounts."""
    found = []
    for line in table.splitlines():
        _, field, _, options, *_ = line.split()
        point = decoded(field)
        below = point == "/" or any(point == top or point.startswith(top + "/") for top in KEPT_BELOW)
        if below and "rw" in options.split(",") and os.path.isdir(point):
            found.append(point)
    return sorted(set(found))


def room(point: str) -> dict[str, int]:
    """Free room as users other than root have it; 100 percent for what has no size at all."""
    found = os.statvfs(point)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return {"free": free, "size": size, "percent": 100 * free // size if size else 100}


def files(folder: str, endings: tuple[str, ...], device: int) -> Iterator[tuple[str, int]]:
    """Path and bytes on disk of regular files of one filesystem below a folder, without following links."""
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            if not name.endswith(endings) or path.startswith(JOURNAL + "/"):
                continue
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode) and found.st_dev == device:
                yield path, found.st_blocks * 512


def journal_bytes(device: int) -> int:
    """How much of the journal lies on a filesystem, beyond what is kept."""
    total = 0
    for top, _, names in os.walk(JOURNAL):
        for name in names:
            found = os.lstat(os.path.join(top, name))
            total += found.st_blocks * 512 if found.st_dev == device else 0
    return max(total - JOURNAL_KEPT, 0)


def may_go(point: str) -> dict[str, int]:
    """Bytes of each kind that may go on one filesystem."""
    device = os.stat(point).st_dev
    found = {what: sum(size for _, size in files(*where, device)) for what, where in REMOVABLE.items()}
    found["journal"] = journal_bytes(device)
    return {what: size for what, size in found.items() if size}


def largest(listed: str, point: str) -> dict[str, int]:
    """The folders that take most, from the output of `du -xk`; one within another counts for itself only."""
    sizes = {path: int(size) << 10 for size, path in (line.split("\t", 1) for line in listed.splitlines())}
    own = dict(sizes)
    for path, size in sizes.items():
        above = os.path.dirname(path)
        if path != point and above in own:
            own[above] -= size
    ordered = sorted(own.items(), key=lambda item: -item[1])
    return dict(ordered[:LARGEST])


def waiting_wal(folder: str) -> str:
    """A line about WAL that waits for the archive; empty when none does."""
    waiting = sum(name.endswith(".ready") for name in os.listdir(os.path.join(folder, "archive_status")))
    size = sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder) if entry.is_file())
    if waiting < WAITING:
        return ""
    return f"{amount(size)} of WAL, {waiting} files of it wait for the archive: docs/runbooks/WalArchivingFails.md"


def words(point: str, found: t.Mapping[str, int], folders: t.Mapping[str, int], goes: t.Mapping[str, int]) -> str:
    """One filesystem in a line."""
    most = ", ".join(f"{folder} {amount(size)}" for folder, size in folders.items())
    gone = ", ".join(f"{what} {amount(size)}" for what, size in goes.items()) or "nothing"
    return (
        f"{point} has {found['percent']} % free ({amount(found['free'])} of {amount(found['size'])}); "
        f"may go: {gone}; most is in {most}"
    )


def look(module: AnsibleModule, short: t.Mapping[str, t.Mapping[str, int]]) -> dict[str, t.Any]:
    """What is short, what may go and what takes the room."""
    lines, total = [], 0
    for point, found in short.items():
        # What vanishes while it is counted is no failure.
        _, listed, _ = module.run_command(["du", "-xk", "-d4", point])
        goes = may_go(point)
        total += sum(goes.values())
        lines.append(words(point, found, largest(listed, point), goes))
    folder = module.params["wal"]
    if folder and os.path.isdir(folder) and (line := waiting_wal(folder)):
        lines.append(line)
    return {"changed": False, "short": short, "may_go": total, "lines": lines}


def free(module: AnsibleModule, points: Iterable[str]) -> int:
    """Remove what may go on some filesystems; bytes that have become free."""
    freed = 0
    for point in points:
        before, device = room(point)["free"], os.stat(point).st_dev
        for folder, endings in REMOVABLE.values():
            for path, _ in list(files(folder, endings, device)):
                os.unlink(path)
        if journal_bytes(device):
            module.run_command(["journalctl", "--rotate", f"--vacuum-size={JOURNAL_KEPT}"], check_rc=True)
        freed += max(room(point)["free"] - before, 0)
    return freed


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "step": {"choices": ["look", "free"], "required": True},
            "below": {"type": "int", "required": True},
            "wal": {"type": "path"},
        },
        supports_check_mode=True,
    )
    with open("/proc/mounts", encoding="utf-8") as stream:
        points = mounts(stream.read())
    short = {point: found for point in points if (found := room(point))["percent"] < module.params["below"]}
    if module.params["step"] == "free":
        freed = 0 if module.check_mode else free(module, short)
        module.exit_json(changed=freed > 0, freed=freed)
    module.exit_json(**look(module, short))


if __name__ == "__main__":
    main()
