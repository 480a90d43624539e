"""Where a database is restored to: what a person typed, held against what the store has."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t
from collections.abc import Callable, Mapping, Sequence

# Without a space: so it needs no quotes within quotes behind `-e`.
EXAMPLE = "-e at=2026-01-01T10:00:00+00"
# A backup's times are whole seconds; it can be used from its end on.
SECOND = datetime.timedelta(seconds=1)


class TargetError(Exception):
    """What is wrong with the target and what to write instead."""


@dataclasses.dataclass(frozen=True)
class Backup:
    """A backup in the store; `size` is that of the database it makes, in bytes.

    :param timeline: it was made on, up to the WAL position `position`.
    """

    label: str
    ended: datetime.datetime
    size: int
    timeline: int
    position: int


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to, as PostgreSQL is told: just before `value` (behind it, for the name of a restore point).

    :param kind: ``time``, ``xid`` or ``name``.
    :param at: the moment, as far as it is known.
    """

    kind: str
    value: str
    backup: Backup
    at: datetime.datetime | None


def choose(
    made: Sequence[Backup],
    asked: Mapping[str, str],
    now: datetime.datetime,
    committed_at: Callable[[str], datetime.datetime | None],
) -> Target:
    """The target that a person means, and the backup from which it is reached.

    :param asked: one of ``at``, ``xid`` and ``point``, perhaps ``set`` (a backup's label); what is empty is not asked.
    :param committed_at: when a transaction was committed, or None.
    :raises TargetError: when the target cannot be understood or reached, with what can be.
    """
    kinds = [kind for kind in ("at", "xid", "point") if asked.get(kind)]
    if len(kinds) != 1:
        raise TargetError(f"Say one of {EXAMPLE}, -e xid=1234 and -e point=NAME")
    value, label = asked[kinds[0]], asked.get("set")
    backup = backup_named(made, label) if label else made[-1]
    if kinds == ["point"]:
        return Target("name", value, backup, None)
    at = parse_time(value) if kinds == ["at"] else commit_time(value, committed_at)
    if at is not None:
        newest = backup_before(made, at, now)
        if label and backup.ended > newest.ended:
            raise TargetError(
                f"set: backup {label} was complete after {show(at)}; the newest that can serve is {newest.label}"
            )
        backup = backup if label else newest
    elif not label:
        raise TargetError(f"xid: when {value} was committed is not known here; say the time instead: {EXAMPLE}")
    if kinds == ["at"] and at is not None:
        return Target("time", show(at, "microseconds"), backup, at)
    return Target("xid", value, backup, at)


def commit_time(xid: str, committed_at: Callable[[str], datetime.datetime | None]) -> datetime.datetime | None:
    """When a transaction was committed, if that is known. Raises TargetError for what is no transaction."""
    if not xid.isdecimal():
        raise TargetError(f"xid: `{xid}` is no transaction; write its number: -e xid=1234")
    return committed_at(xid)


def parse_time(text: str) -> datetime.datetime:
    """A moment as it is typed, in UTC. Raises TargetError when it is none, or has no time zone."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise TargetError(f"at: `{text}` is no time; write {EXAMPLE}") from None
    if moment.tzinfo is None:
        raise TargetError(f"at: `{text}` has no time zone; add one, +00 for UTC: {EXAMPLE}")
    return moment.astimezone(datetime.UTC)


def show(moment: datetime.datetime, timespec: str = "seconds") -> str:
    """A moment as it can be typed again."""
    return moment.astimezone(datetime.UTC).isoformat("T", timespec).replace("+00:00", "+00")


def backups(info: Sequence[Mapping[str, t.Any]], stanza: str) -> list[Backup]:
    """Usable backups of `pgbackrest info --output=json`, oldest first.

    :raises TargetError: when there is none, with what the store says.
    """
    found = next((entry for entry in info if entry["name"] == stanza), None)
    if found is None or not found.get("backup"):
        said = found["status"]["message"] if found else "no such stanza"
        raise TargetError(
            f"The store has no backup ({said}). Look at `pgbackrest info` on a data host: is it the right store?"
        )

    def moment(seconds: int) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    usable = [
        Backup(
            one["label"],
            moment(one["timestamp"]["stop"]),
            one["info"]["size"],
            int(one["archive"]["stop"][:8], 16),
            position(one["lsn"]["stop"]),
        )
        for one in found["backup"]
        if not one.get("error")
    ]
    if not usable:
        raise TargetError("Every backup in the store has page errors. Look at `pgbackrest info --set=LABEL`.")
    return sorted(usable, key=lambda one: one.ended)


def position(text: str) -> int:
    """A WAL position such as 0/5A233D60 as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def on_timeline(made: Sequence[Backup], timeline: int, history: str) -> list[Backup]:
    """The backups from which a timeline can be reached: made on it, or on one that it came from, before it parted.

    :param history: the timeline's history file; empty for the first one.
    :raises TargetError: when there is none.
    """
    parted = {timeline: float("inf")}
    for line in history.splitlines():
        words = line.split("\t")
        if len(words) > 1:
            parted[int(words[0])] = position(words[1])
    usable = [one for one in made if one.position <= parted.get(one.timeline, -1)]
    if not usable:
        raise TargetError(f"No backup leads to timeline {timeline}. Choose another: -e timeline=N (`pgbackrest info`).")
    return usable


def backup_before(made: Sequence[Backup], at: datetime.datetime, now: datetime.datetime) -> Backup:
    """The newest backup from which a moment can be reached. Raises TargetError, naming the moments that can."""
    possible = f"Choose a time from {show(made[0].ended + SECOND)} to {show(now)}."
    if at > now:
        raise TargetError(f"at: {show(at)} is in the future. {possible}")
    earlier = [one for one in made if one.ended + SECOND <= at]
    if not earlier:
        raise TargetError(f"at: {show(at)} is before the oldest backup was complete. {possible}")
    return earlier[-1]


def backup_named(made: Sequence[Backup], label: str) -> Backup:
    """A backup by its label. Raises TargetError, naming those that exist."""
    for one in made:
        if one.label == label:
            return one
    raise TargetError(f"set: there is no backup {label}; there are {', '.join(one.label for one in made)}")


def amount(size: float) -> str:
    """Bytes for a person."""
    for length, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """A length of time for a person, rounded up."""
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{-(-seconds // length):.0f} {unit}"
    return f"{-(-seconds // 1):.0f} seconds"
