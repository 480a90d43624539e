"""What the restore prover makes of what it is told: by pgBackRest, by the copy, by the clock."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from arches_prover import checks, main, report, scratch, store
from arches_prover.errors import NotProven, StoreAway
from arches_prover.settings import MIB, Settings

SETTINGS = Settings(
    stanza="arches", database="arches", interval_s=86400, memory_mb=256, spare_mb=100, rpo_s=180, patience_s=240,
    heapallindexed_mb=1000, landmark={"query": "[1,0,0]", "nearest": [1]},
)  # fmt: skip
BACKUP = store.Backup("20260103-020000F", "full", 1767405600, 300 * MIB, False, "0000000200000001000000FF")
SEGMENT = 16 * MIB


def stanza(**changes: Any) -> str:
    """The document of `info`, cut down to what is read, with a full and a differential backup."""

    def backup(label: str, kind: str, stop: int, database: int) -> dict[str, Any]:
        return {
            "label": label, "type": kind, "timestamp": {"start": stop - 9, "stop": stop}, "error": False,
            "database": {"id": database, "repo-key": 1}, "info": {"size": 4096}, "archive": {"stop": "B" * 24},
        }  # fmt: skip

    document = {
        "status": {"code": 0, "message": "ok"},
        "repo": [{"status": {"code": 0, "message": "ok"}}],
        "archive": [
            {"database": {"id": 1, "repo-key": 1}, "max": "000000090000000000000009"},
            {"database": {"id": 2, "repo-key": 1}, "max": "000000010000000000000007"},
        ],
        "backup": [
            backup("20260101-020000F", "full", 100, 1), backup("20260101-020000F_20260102-020000D", "diff", 200, 2),
        ],
    }  # fmt: skip
    return json.dumps([document | changes])


# The store


def test_the_newest_backup_and_the_wal_of_its_own_database_are_read() -> None:
    newest = store.parse_info(stanza())
    assert (newest.label[-1], newest.kind, newest.newest_wal) == ("D", "diff", "000000010000000000000007")


def test_no_backup_is_said() -> None:
    text = stanza(backup=[], status={"code": 2, "message": "no valid backups"})
    with pytest.raises(NotProven, match="no backup in the store"):
        store.parse_info(text)


def unreadable(message: str) -> str:
    """A store that could not be read; `info` ends with status 0 all the same."""
    return stanza(
        status={"code": 99, "message": "other"}, repo=[{"status": {"code": 99, "message": message}}], backup=[]
    )


@pytest.mark.parametrize(
    ("message", "away", "says"),
    [
        ("[HostConnectError] unable to connect to '192.0.2.41:7070': [111] Connection refused", True, "refused"),
        ("[ProtocolError] HTTP request failed with 503 (Service Unavailable):\n*** Path/Query ***:", True, "503"),
        ("[ServiceError] unexpected eof", True, "eof"),
        ("[ProtocolError] HTTP request failed with 403 (Forbidden):\n*** Path/Query ***:\nGET /", False, "403"),
        ("[FormatError] unable to load info file 'a' or 'b':\nFormatError: key\x01", False, "passphrase"),
    ],
)
def test_a_store_that_is_away_differs_from_one_that_refuses(message: str, away: bool, says: str) -> None:
    with pytest.raises(NotProven, match=says) as caught:
        store.parse_info(unreadable(message))
    assert isinstance(caught.value, StoreAway) == away
    assert "\n" not in str(caught.value)


def test_words_are_cut_to_the_line_that_tells_and_what_its_colon_announces() -> None:
    words = "WARN: x\nERROR: [042]: unable to get 0A:\n  repo1:\n    [FileWriteError] unable to write\n  HINT: y\n"
    assert store.short(words) == "ERROR: [042]: unable to get 0A: repo1: [FileWriteError] unable to write"
    assert store.short("") == "no words"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping moves."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(store.time, "sleep", sleep)
    return now


def failing(*results: Exception | str) -> Callable[[], str]:
    """An attempt that ends like this, one after the other."""
    rest: Iterator[Exception | str] = iter(results)

    def attempt() -> str:
        result = next(rest)
        if isinstance(result, Exception):
            raise result
        return result

    return attempt


def test_a_store_that_comes_back_is_waited_for(clock: list[float]) -> None:
    assert store.patiently(failing(StoreAway("a"), StoreAway("b"), "there"), 240) == "there"


def test_patience_ends(clock: list[float]) -> None:
    with pytest.raises(NotProven, match="did not come back within 240 s: gone"):
        store.patiently(failing(*[StoreAway("gone")] * 1000), 240)
    assert 1240 < clock[0] < 1250


def test_what_does_not_get_better_is_not_tried_again(clock: list[float]) -> None:
    with pytest.raises(NotProven, match="damaged"):
        store.patiently(failing(NotProven("damaged"), "there"), 240)
    assert clock == [1000.0]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> list[CompletedProcess[str]]:
    """What pgBackRest answers, one after the other; an empty list when it must not be asked."""
    answers: list[CompletedProcess[str]] = []
    monkeypatch.setattr(store, "pgbackrest", lambda settings, *words: answers.pop(0))
    return answers


def fetch(name: str) -> int:
    """Status for Postgres, which replays up to 00000002...10."""
    return store.fetch_wal(SETTINGS, "000000020000000000000010", name, "pg_wal/RECOVERYXLOG")


def answer(status: int, words: str = "") -> CompletedProcess[str]:
    """An answer of pgBackRest."""
    return CompletedProcess([], status, "", words)


def test_wal_of_the_archive_is_passed_on_and_so_is_its_end(archive: list[CompletedProcess[str]]) -> None:
    archive += [answer(0), answer(1)]
    assert (fetch("000000020000000000000010"), fetch("00000002.history")) == (0, 1)


@pytest.mark.parametrize("name", ["000000020000000000000011", "00000003.history", "000000030000000000000001"])
def test_what_was_archived_after_the_beginning_is_left_out(name: str, archive: list[CompletedProcess[str]]) -> None:
    assert fetch(name) == 1


def test_a_damaged_segment_is_not_the_end_of_the_archive(
    archive: list[CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    archive.append(answer(95, "ERROR: [095]: CryptoError"))
    assert fetch("000000020000000000000009") > 125, "Postgres would go on without it"
    assert "ERROR: 000000020000000000000009 of the archive" in capsys.readouterr().err


def test_a_store_that_is_away_is_not_the_end_of_the_archive(
    archive: list[CompletedProcess[str]], clock: list[float]
) -> None:
    archive += [answer(103, "WARN: [HostConnectError] timeout"), answer(0)]
    assert fetch("000000020000000000000009") == 0
    archive += [answer(103, "WARN: [HostConnectError] timeout")] * 1000
    assert fetch("000000020000000000000009") > 125


# The copy


def test_room_is_the_databases_and_what_must_be_spare() -> None:
    scratch.room(SETTINGS, BACKUP, 400 * MIB)
    with pytest.raises(NotProven, match="has 399 MiB free, the copy needs 400 MiB"):
        scratch.room(SETTINGS, BACKUP, 400 * MIB - 1)


def test_the_copy_listens_to_nobody_and_archives_nothing() -> None:
    made = scratch.server_settings(SETTINGS, "A" * 24)
    assert made["listen_addresses"] == "" and made["archive_mode"] == "off"
    assert f'wal {"A" * 24} "%f" "%p"' in made["restore_command"]


def test_last_words_are_errors_but_not_those_of_who_knocked_too_early() -> None:
    log = (
        "a FATAL:  the database system is starting up\nERROR: 0A of the archive: broken\nb FATAL:  could not restore\n"
    )
    assert scratch.last_errors(log) == "0A of the archive: broken; could not restore"
    assert scratch.last_errors("LOG: fine") == "it said nothing"


# The checks


@pytest.mark.parametrize(
    ("timeline", "position", "whole"),
    [
        (2, 0x1_FF00_0000 + 1, True),
        (2, 0x2_0000_0000, True),  # the end of that segment is the beginning of the next
        (2, 0x2_0100_0000, True),
        (2, 0x1_FF00_0000, False),
        (1, 0x2_0000_0000, False),
    ],
)
def test_wal_is_whole_when_the_newest_segment_was_reached(timeline: int, position: int, whole: bool) -> None:
    if whole:
        assert "replayed up to" in checks.wal_is_whole(BACKUP, (timeline, position), SEGMENT)
    else:
        with pytest.raises(NotProven, match="missing or damaged"):
            checks.wal_is_whole(BACKUP, (timeline, position), SEGMENT)


def test_the_end_of_wal_is_in_the_history_of_the_newest_timeline(tmp_path: Path) -> None:
    (tmp_path / "00000002.history").write_text("1\t0/3000000\tno recovery target specified\n")
    (tmp_path / "0000000A.history").write_text(
        "1\t0/3000000\tno recovery target specified\n\n9\t2/4A0000F8\tno recovery target specified\n"
    )
    assert checks.end_of_wal(tmp_path) == (9, 0x2_4A00_00F8)


def test_a_canary_of_just_the_allowed_age_is_young() -> None:
    assert "180 s old (from data1)" in checks.canary_is_young(SETTINGS, 180, "data1")
    with pytest.raises(NotProven, match="181 s old"):
        checks.canary_is_young(SETTINGS, 181, "data1")


@pytest.mark.parametrize(
    ("counts", "estimates", "wrong"),
    [
        ({"a.b": 1000}, {"a.b": 1000}, ""),
        ({"a.b": 700, "c.d": 5}, {"a.b": 1000}, ""),
        ({"a.b": 10**9}, {"a.b": 0}, ""),
        ({"a.b": None}, {"a.b": 1000}, ""),
        ({}, {}, ""),
        ({"a.b": 699}, {"a.b": 1000}, "a.b has 699 rows, about 1000 were there"),
        ({"a.b": 1000}, {"a.b": 1000, "c.d": 0}, "c.d is gone"),
        ({"a.b": 1, "c.d": 1}, {}, "knew none of the 2 tables"),
    ],
)
def test_rows(counts: dict[str, int | None], estimates: dict[str, int], wrong: str) -> None:
    if not wrong:
        assert "rows in" in checks.rows_are_there(counts, estimates)
    else:
        with pytest.raises(NotProven, match=wrong):
            checks.rows_are_there(counts, estimates)


def test_a_backup_of_damaged_pages_is_no_good() -> None:
    with pytest.raises(NotProven, match="damaged pages"):
        checks.backup_is_clean(store.Backup("x", "full", 1, 1, True, "A" * 24))


def test_every_check_is_made_after_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> Any:
        raise NotProven("the copy has gone")

    monkeypatch.setattr(checks, "ask", silent)
    monkeypatch.setattr(checks.subprocess, "run", lambda *_, **__: CompletedProcess([], 2, "heap table a: broken", ""))
    judged, rpo_s = checks.all_checks(SETTINGS, BACKUP, 1000.0)
    assert {check.name: check.passed for check in judged} == {
        "backup": True, "wal": False, "canary": False, "rows": False, "vector": False, "structure": False,
    }  # fmt: skip
    assert rpo_s is None


# The report


PROVEN = {"at": 990.0, "duration_s": 41.0, "rpo_s": 38.0, "backup": "x"}


def told(**changes: Any) -> dict[str, float]:
    """Metrics of a report."""
    base = {"started": 1000.0, "proven": True, "rpo_s": 30.0, "last_proven": PROVEN}
    ended_well = changes.pop("ended_well", True)
    text = report.metrics(base | changes, ended_well, 86400)
    return {name.removeprefix("arches_restore_"): float(value) for name, value in map(str.split, text.splitlines())}


def test_metrics_of_a_proof() -> None:
    assert told() == {
        "last_attempt_timestamp_seconds": 1000, "last_attempt_success": 1, "last_proven_timestamp_seconds": 990,
        "duration_seconds": 41, "rpo_seconds": 30, "interval_seconds": 86400,
    }  # fmt: skip


def test_a_failed_attempt_does_not_move_the_last_proof() -> None:
    made = told(proven=False, rpo_s=None)
    assert (made["last_attempt_success"], made["last_proven_timestamp_seconds"], made["rpo_seconds"]) == (0, 990, 38)


def test_an_attempt_that_systemd_saw_fail_has_failed() -> None:
    assert told(ended_well=False)["last_attempt_success"] == 0


def test_what_was_never_proven_has_no_time() -> None:
    assert told(proven=False, rpo_s=None, last_proven=None).keys() == {
        "last_attempt_timestamp_seconds", "last_attempt_success", "interval_seconds",
    }  # fmt: skip


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report lies in a folder of the test."""
    monkeypatch.setattr(report, "FILE", tmp_path / "last.json")
    monkeypatch.setattr(main.Settings, "read", classmethod(lambda cls: SETTINGS))
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    return tmp_path / "last.json"


def test_a_proof_is_remembered_by_the_attempts_after_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def good(settings: Settings, made: report.Report) -> None:
        assert json.loads(state.read_text())["finished"] is None, "a killed attempt must not look finished"
        made.backup, made.rpo_s = BACKUP, 12.0

    def bad(settings: Settings, made: report.Report) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main, "attempt", good)
    assert main.main(["prove"]) == 0
    first = json.loads(state.read_text())
    assert first["proven"] and first["last_proven"]["at"] == first["finished"]
    monkeypatch.setattr(main, "attempt", bad)
    assert main.main(["prove"]) == 1
    second = json.loads(state.read_text())
    assert not second["proven"] and "No space left" in second["why"]
    assert second["last_proven"] == first["last_proven"]
