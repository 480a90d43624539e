"""Who makes backups, what is due, what is said of a failure: the program of role backup, without its surroundings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lib.plugins import load_program

SUNDAY, DAY = 1_795_312_800.0, 86_400.0  # Sunday, 22 November 2026, 02:00 UTC
SCHEDULE = {"full": "Sun *-*-* 02:00:00", "differential": "Mon..Sat *-*-* 02:00:00", "redis": "*-*-* 02:30:00"}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module."""
    return load_program("backup/files/arches_backup.py")


def member(name: str, role: str = "quorum_standby", state: str = "streaming") -> dict[str, Any]:
    """A member as Patroni shows it."""
    return {"name": name, "role": role, "state": state}


@pytest.mark.parametrize(
    ("members", "acts"),
    [
        ([member("data1", "leader", "running"), member("data3"), member("data2")], "data2"),
        ([member("data1"), member("data2", "leader", "running"), member("data3")], "data1"),
        ([member("data1", state="stopped"), member("data2", "leader", "running"), member("data3", "replica")], "data3"),
        ([member("data1", state="in archive recovery"), member("data2", "leader", "running")], "data2"),
        ([member("data1", "leader", "running")], "data1"),
    ],
)
def test_the_first_streaming_replica_acts_or_the_leader_if_there_is_none(
    program: ModuleType, members: list[dict[str, Any]], acts: str
) -> None:
    assert program.acting(members) == acts


@pytest.mark.parametrize("members", [[], [member("data1")], [member("data1", "leader", "crashed"), member("data2")]])
def test_nobody_acts_without_a_leader(program: ModuleType, members: list[dict[str, Any]]) -> None:
    with pytest.raises(program.BackupError, match=r"no leader.*patronictl list"):
        program.acting(members)


def made(program: ModuleType, kind: str, started: float) -> Any:
    """Something in the store."""
    return program.Made(kind, f"{kind}-{started}", started, started + 10, 1000)


@pytest.mark.parametrize(
    ("stored", "now", "kinds"),
    [
        # A fresh fleet.
        ([], SUNDAY, ["full", "redis"]),
        # In between nothing is due.
        ([("full", 0), ("redis", 0.1)], 0.9, []),
        # The next day; a full backup serves as a differential one until then.
        ([("full", 0), ("redis", 0.1)], 1.0, ["differential"]),
        ([("full", 0), ("differential", 1), ("redis", 0.1)], 1.1, ["redis"]),
        # A missed night is made up for, once.
        ([("full", 0), ("differential", 1), ("redis", 1.1)], 3.5, ["differential", "redis"]),
        # A full backup that failed on Sunday is made up for later, though a differential one was made since.
        ([("full", 0), ("differential", 8), ("redis", 8.1)], 8.2, ["full"]),
    ],
)
def test_what_is_due_follows_from_the_store_and_the_schedule(
    program: ModuleType, stored: list[tuple[str, float]], now: float, kinds: list[str]
) -> None:
    since = now if now >= SUNDAY else SUNDAY + now * DAY
    found = [made(program, kind, SUNDAY + days * DAY) for kind, days in stored]
    assert program.due(found, SCHEDULE, since) == kinds


def test_a_schedule_that_never_comes_again_is_not_due(program: ModuleType) -> None:
    schedule = {**SCHEDULE, "redis": "2020-01-01"}
    assert program.due([made(program, "full", SUNDAY), made(program, "redis", SUNDAY)], schedule, SUNDAY + 5) == []


def test_a_schedule_that_systemd_does_not_know_is_refused_with_the_fix(program: ModuleType) -> None:
    with pytest.raises(program.BackupError, match=r"'every sunday' is none.*correct `backups` in the inventory"):
        program.next_time("every sunday", SUNDAY)


DATABASE = {"id": 1, "system-id": 7, "version": "17"}


@pytest.mark.parametrize(
    ("known", "command"),
    [
        ([], "stanza-create"),
        ([DATABASE], None),
        ([DATABASE, {**DATABASE, "id": 2, "system-id": 8}], "stanza-upgrade"),
        ([{**DATABASE, "system-id": 8}, {**DATABASE, "id": 2}], None),
        ([{**DATABASE, "version": "16"}], "stanza-upgrade"),
    ],
)
def test_the_store_gets_what_it_wants_for_this_database(
    program: ModuleType, known: list[dict[str, Any]], command: str | None
) -> None:
    assert program.wanting({"db": known}, 7, "17") == command


def stored_backup(label: str, kind: str = "full", database: int = 1, error: bool = False) -> dict[str, Any]:
    """A backup as pgBackRest's `info` shows it."""
    return {
        "label": label, "type": kind, "error": error, "database": {"id": database},
        "timestamp": {"start": 100, "stop": 160}, "info": {"repository": {"delta": 5}},
    }  # fmt: skip


def test_damaged_backups_and_those_of_a_former_database_do_not_count(program: ModuleType) -> None:
    info = {
        "db": [DATABASE, {**DATABASE, "id": 2}],
        "backup": [
            stored_backup("former", database=1), stored_backup("good", database=2),
            stored_backup("later", "diff", database=2), stored_backup("damaged", database=2, error=True),
        ],
    }  # fmt: skip
    found = program.whole_backups(info)
    assert [(one.kind, one.name, one.ended - one.started) for one in found] == [
        ("full", "good", 60), ("differential", "later", 60)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ERROR: [056]: unable to find primary cluster - cannot proceed", "No leader can be reached"),
        ("HTTP request failed with 403 (Forbidden)", "compare vault_s3_backups_"),
        ("curl: (22) The requested URL returned error: 403", "compare vault_s3_backups_"),
        ("HTTP request failed with 404 (Not Found): <Code>NoSuchBucket</Code>", "object_store.bucket"),
        ("[CryptoError] unable to verify certificate presented by 'store:7070'", "object_store.ca_file"),
        ("[FormatError] key/value found outside of section at line 1", "former vault_backup_passphrase"),
        ("[HostConnectError] timeout connecting to 'store:7070'", "The store does not answer"),
        ("something new", "failed with status 99: something new"),
    ],
)
def test_a_failure_names_its_fix(program: ModuleType, said: str, fix: str) -> None:
    error = program.failure("pgbackrest", 99, said)
    assert fix in str(error) and "\n" not in str(error)
    assert not isinstance(error, program.Busy)


def test_what_is_quoted_is_short_and_printable(program: ModuleType) -> None:
    said = "failed with 403 (Forbidden):\n*** Request Headers ***:\nauthorization: secret \x07"
    assert str(program.failure("pgbackrest", 99, said)).endswith("pgbackrest says: failed with 403 (Forbidden):")
    assert str(program.failure("pgbackrest", 99, "odd \x07\x00 bytes")).endswith("odd bytes")


class Host:
    """A host that makes backups into a list, some of which fail."""

    def __init__(self, program: ModuleType, failing: dict[str, Exception]) -> None:
        self.program, self.failing, self.made = program, failing, list[Any]()
        self.config = {"schedule": SCHEDULE, "redis": {"keep": 3}}

    def acts(self) -> bool:
        """It always does."""
        return True

    def stored(self) -> list[Any]:
        """What was made."""
        return self.made


@pytest.fixture
def host(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """The host, with the node exporter's folder."""
    found = Host(program, {})

    def make(host: Host, kind: str) -> None:
        if kind in host.failing:
            raise host.failing[kind]
        host.made.append(made(program, kind, 1000.0))

    monkeypatch.setattr(program, "make", make)
    monkeypatch.setattr(program, "METRICS", tmp_path)
    return found


def test_one_failure_does_not_keep_the_other_backup_from_being_made(program: ModuleType, host: Host) -> None:
    host.failing["full"] = program.BackupError("The store is full.")
    with pytest.raises(program.BackupError, match="full: The store is full"):
        program.make_due(host)
    assert [one.kind for one in host.made] == ["redis"]


def test_a_backup_that_is_being_made_already_is_no_failure(program: ModuleType, host: Host) -> None:
    host.failing["full"] = program.Busy("Another backup is being made.")
    program.make_due(host)


def test_monitoring_hears_what_the_store_has(program: ModuleType, host: Host, tmp_path: Path) -> None:
    program.make_due(host)
    assert (tmp_path / "backup.prom").read_text().splitlines() == [
        f'arches_backup_{name}{{type="{kind}"}} {value}'
        for kind in ("full", "redis")
        for name, value in (("last_success_timestamp_seconds", 1010), ("duration_seconds", 10), ("size_bytes", 1000))
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["backup.prom"]


@pytest.mark.parametrize(
    ("verb", "error", "status"),
    [
        ("full", "Busy", 75), ("full", "BackupError", 1), ("full", "PatroniSilent", 1),
        ("due", "PatroniSilent", 0), ("canary", "PatroniSilent", 0), ("due", "BackupError", 1),
        ("full", "Leaderless", 1), ("due", "Leaderless", 0),
    ],
)  # fmt: skip
def test_the_exit_status_says_what_happened(
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
    verb: str,
    error: str,
    status: int,
) -> None:
    def act(*_: Any) -> None:
        raise getattr(program, error)("What is wrong, what to do.")

    (tmp_path / "backup.json").write_text(json.dumps({"name": "data1"}))
    monkeypatch.setattr(program, "CONFIG", tmp_path / "backup.json")
    monkeypatch.setattr(program, "act", act)
    assert program.main([verb]) == status
    assert capsys.readouterr().err == "What is wrong, what to do.\n"


def test_no_program_hears_a_secret_by_its_command_line(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every user of a host can see in the list of processes."""
    seen: list[list[str]] = []

    def run(words: list[str], **_: Any) -> Any:
        seen.append([str(word) for word in words])
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    store = {"endpoint": "https://store", "region": "r", "bucket": "b", "ca_file": "", "timeout_s": 1}
    host = program.Host(
        {
            "name": "data1", "ca_file": "ca", "passphrase": "s3cret",
            "redis": {"user": "u", "password": "s3cret", "port": 1},
            "store": {**store, "access_key": "k", "secret_key": "s3cret"},
        }
    )  # fmt: skip
    host.store("GET", "a")
    host.redis("192.0.2.31", "ROLE")
    program.crypt(host, Path("a"), Path("b"))
    assert [words[0] for words in seen] == ["curl", "redis-cli", "openssl"]
    assert not [words for words in seen if "s3cret" in " ".join(words)]


def stored(program: ModuleType, key: str, *since: float) -> list[Any]:
    """Versions of an object as the store lists them; a negative time is a deletion."""
    made = [program.Version(key, str(at), at < 0, abs(at), 10 if at > 0 else 0) for at in since]
    return list(reversed(made))


@pytest.mark.parametrize(
    ("key", "since", "back"),
    [
        ("pgbackrest/backup/arches/L/file", (10, -50), "10"),
        ("pgbackrest/backup/arches/L/file", (10,), None),
        ("pgbackrest/backup/arches/L/file", (10, -20), None),  # gone before the moment
        ("pgbackrest/backup/arches/L/file", (40,), None),  # not yet there
        ("pgbackrest/archive/arches/segment", (40, -50), "40"),  # archived while somebody deleted
        ("pgbackrest/backup/arches/L/file", (10, 50), "10"),  # somebody wrote over it
        ("pgbackrest/backup/arches/backup.info", (10, 50), None),  # pgBackRest itself wrote it again
        ("pgbackrest/backup/arches/backup.info", (10, 20, 50, -60), "50"),
        ("pgbackrest/archive/arches/archive.info.copy", (10, -50, 60), None),  # a new chain has begun
        ("pgbackrest/backup/arches/backup.info", (10, 40, -50), "40"),  # the last one knows most
    ],
)
def test_what_was_current_at_a_moment_and_is_not_any_more_can_come_back(
    program: ModuleType, key: str, since: tuple[float, ...], back: str | None
) -> None:
    found = program.hidden(stored(program, key, *since), at=30)
    assert [version.version_id for version in found] == ([back] if back else [])


def test_what_was_put_back_is_not_put_back_again(program: ModuleType) -> None:
    key = "pgbackrest/backup/arches/L/file"
    versions = [
        program.Version(key, "c", False, 60, 10, "same"),
        program.Version(key, "b", True, 50, 0),
        program.Version(key, "a", False, 10, 10, "same"),
    ]
    assert program.hidden(versions, at=30) == []
    assert program.hidden(versions[1:], at=30) == [versions[2]]


def test_when_a_version_was_made_is_in_its_name_where_that_is_a_ulid(program: ModuleType) -> None:
    modified = "2026-11-30T17:59:52Z"
    assert program.created("01M8PSSZAH6D6V0HT789JYV1X6", "2026-11-30T17:50:03.16Z") == pytest.approx(1796061592.913)
    assert program.created("not-a-ulid", modified) == 1796061592
    assert program.created("null", modified) == 1796061592


def test_the_moment_is_before_the_lists_were_deleted(program: ModuleType) -> None:
    lists = stored(program, "pgbackrest/backup/arches/backup.info", 10, -50)
    expired = stored(program, "pgbackrest/backup/arches/L/file", 10, -20)
    assert program.vanished([*lists, *expired]) == 19, "somebody who deletes one after the other began with this"
    long_ago = stored(program, "pgbackrest/backup/arches/M/file", 10, -70)
    later = stored(program, "pgbackrest/backup/arches/backup.info", 10, -200)
    assert program.vanished([*later, *long_ago]) == 199
    assert program.vanished(expired) is None
    assert program.vanished(stored(program, "pgbackrest/backup/arches/backup.info", 10, -50, 60)) is None


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("pgbackrest/backup/arches/20261122-020000F/pg_data/x", "backup 20261122-020000F"),
        ("pgbackrest/backup/arches/backup.info", "the lists of backups and WAL"),
        ("pgbackrest/archive/arches/17-1/0000/0001", "WAL"),
        ("redis/data1/20261122T020000Z.rdb.aes", "copies of Redis of data1"),
        ("other", "other"),
    ],
)
def test_an_object_is_named_by_what_it_belongs_to(program: ModuleType, key: str, words: str) -> None:
    assert program.part_of(key) == words


def test_a_moment_needs_a_zone_and_belongs_to_two_verbs(
    program: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["bring-back"], ["full", "--at", "2026-01-01T10:00:00Z"], ["deleted", "--at", "2026-01-01T10:00:00"]):
        with pytest.raises(SystemExit):
            program.main(words)
    assert "names no time zone" in capsys.readouterr().err
