"""A typed target is understood, or refused with what is possible; words of pgBackRest are explained."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

import recovery_target as target
from lib.plugins import load_plugin

pgbackrest = load_plugin("module_utils", "pgbackrest")

NOW = datetime.datetime(2026, 1, 9, 12, tzinfo=datetime.UTC)


def day(number: int, hour: int = 2, minute: int = 0) -> datetime.datetime:
    """A moment in January."""
    return datetime.datetime(2026, 1, number, hour, minute, tzinfo=datetime.UTC)


MADE = [
    target.Backup("full", day(4), 100, timeline=1, position=10),
    target.Backup("diff1", day(5), 110, timeline=1, position=20),
    target.Backup("diff2", day(6), 120, timeline=2, position=30),
]


def choose(committed: datetime.datetime | None = None, **asked: str) -> Any:
    """The target of what is asked."""
    return target.choose(MADE, asked, NOW, lambda xid: committed)


def test_the_newest_backup_before_the_moment_is_taken() -> None:
    found = choose(at="2026-01-05 10:00:00.5+02")
    assert (found.kind, found.value, found.backup.label) == ("time", "2026-01-05T08:00:00.500000+00", "diff1")
    assert choose(at="2026-01-09T12:00:00Z").backup.label == "diff2"


def test_a_backup_serves_from_the_second_after_its_end() -> None:
    assert choose(at="2026-01-05 02:00:01+00").backup.label == "diff1"
    assert choose(at="2026-01-05 02:00:00.9+00").backup.label == "full"


def test_a_transaction_is_found_by_its_time() -> None:
    found = choose(day(5, 10), xid="1234")
    assert (found.kind, found.value, found.backup.label, found.at) == ("xid", "1234", "diff1", day(5, 10))


def test_without_a_time_the_newest_backup_or_a_chosen_one_serves() -> None:
    assert choose(point="before_import").backup.label == "diff2"
    assert choose(point="before_import", set="full").backup.label == "full"
    assert choose(None, xid="1234", set="diff1").backup.label == "diff1"
    assert choose(at="2026-01-06 10:00:00+00", set="full").backup.label == "full"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "Say one of -e at=2026-01-01T10:00:00\\+00, -e xid=1234 and -e point=NAME"),
        ({"at": "2026-01-05 10:00:00+00", "xid": "1"}, "Say one of"),
        ({"at": "yesterday"}, "at: `yesterday` is no time; write -e at=2026-01-01T10:00:00\\+00"),
        ({"at": "2026-13-01 10:00:00+00"}, "is no time"),
        ({"at": "2026-01-05 10:00:00"}, "has no time zone; add one, \\+00 for UTC"),
        (
            {"at": "2026-01-04 01:00:00+00"},
            "at: 2026-01-04T01:00:00\\+00 is before the oldest backup was complete. "
            "Choose a time from 2026-01-04T02:00:01\\+00 to 2026-01-09T12:00:00\\+00",
        ),
        (
            {"at": "2026-01-09 12:00:01+00"},
            "is in the future. Choose a time from 2026-01-04T02:00:01\\+00 to 2026-01-09T12:00:00\\+00",
        ),
        ({"xid": "12a"}, "xid: `12a` is no transaction"),
        ({"xid": "12"}, "xid: when 12 was committed is not known here; say the time instead"),
        ({"point": "x", "set": "gone"}, "set: there is no backup gone; there are full, diff1, diff2"),
        ({"at": "2026-01-05 10:00:00+00", "set": "diff2"}, "set: backup diff2 was complete after .* is diff1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(asked: dict[str, str], says: str) -> None:
    with pytest.raises(target.TargetError, match=says):
        choose(**asked)


WAL = {"archive": {"stop": "0000000A000000000000005D"}, "lsn": {"start": "1/0", "stop": "1/5A"}}


def info(*made: dict[str, Any]) -> list[dict[str, Any]]:
    """What pgBackRest says of a stanza."""
    return [{"name": "arches", "status": {"code": 0, "message": "no valid backups"}, "backup": list(made)}]


def backup(label: str, stop: int, error: bool | None = False) -> dict[str, Any]:
    """One backup in it."""
    return {"label": label, "timestamp": {"start": stop - 9, "stop": stop}, "info": {"size": 5}, "error": error, **WAL}


def test_backups_come_in_the_order_of_their_ends_without_damaged_ones() -> None:
    found = target.backups(info(backup("b", 20), backup("a", 10), backup("c", 30, error=True)), "arches")
    assert [one.label for one in found] == ["a", "b"]
    assert (found[0].timeline, found[0].position) == (10, 0x10000005A)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([], "The store has no backup \\(no such stanza\\)"),
        (info(), "The store has no backup \\(no valid backups\\)"),
        (info(backup("a", 1, error=True)), "Every backup in the store has page errors"),
    ],
)
def test_a_store_without_backups_is_said_to_be_so(said: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(target.TargetError, match=says):
        target.backups(said, "arches")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("P00 ERROR: [049]: [HostConnectError] unable to connect to '192.0.2.41:7070': refused", "Is it up"),
        ("ERROR: [029]: ProtocolError: HTTP request failed with 403 (Forbidden)", "refuses the account"),
        ("ERROR: [041]: unable to write '/a': [28] No space left on device", "The disk is full"),
        ("ERROR: [031]: CryptoError: unable to flush", "vault_backup_passphrase"),
        ("", "it said nothing"),
    ],
)
def test_words_of_pgbackrest_are_explained(said: str, means: str) -> None:
    assert means in pgbackrest.explain(said)


@pytest.mark.parametrize(
    ("timeline", "history", "usable"),
    [
        (1, "", ["full", "diff1"]),
        (2, "1\t0/14\tno recovery target specified\n", ["full", "diff1", "diff2"]),
        (3, "1\t0/13\tbefore 2026-01-05 01:00:00+00\n\n", ["full"]),
        (4, "1\t0/14\tx\n\n2\t0/1F\ty\n\n3\t0/20\tz\n", ["full", "diff1", "diff2"]),
    ],
)
def test_a_backup_that_a_timeline_has_left_behind_does_not_serve(
    timeline: int, history: str, usable: list[str]
) -> None:
    assert [one.label for one in target.on_timeline(MADE, timeline, history)] == usable


def test_a_timeline_without_a_backup_is_refused() -> None:
    with pytest.raises(target.TargetError, match="No backup leads to timeline 5"):
        target.on_timeline(MADE, 5, "1\t0/1\tx\n")


def test_amounts_and_durations_are_for_people() -> None:
    assert [target.amount(size) for size in (0, 1023, 1536, 3 << 20, 5 << 30)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "3.0 MiB", "5.0 GiB",
    ]  # fmt: skip
    assert [target.duration(s) for s in (0.2, 119, 121, 7201, 3 * 86400)] == [
        "1 seconds", "119 seconds", "3 minutes", "3 hours", "3 days",
    ]  # fmt: skip
