"""What is short of room, what may go and what takes it, on real folders; a disk that is full is in tests/drills."""

import os
from pathlib import Path

import pytest

from lib.plugins import load_plugin

room = load_plugin("modules", "disk_room")

TABLE = """\
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw,nosuid 0 0
proc /proc proc rw 0 0
/dev/vdb {var} ext4 rw 0 0
/dev/vdc /usr/share ext4 rw 0 0
/dev/vdd /srv ext4 ro 0 0
"""


def test_only_what_holds_files_that_stay_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "KEPT_BELOW", (str(tmp_path),))
    volume = tmp_path / "a volume"
    volume.mkdir()
    assert room.mounts(TABLE.format(var=str(volume).replace(" ", "\\040"))) == ["/", str(volume)]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of logs; the journal lies in it."""
    monkeypatch.setattr(room, "REMOVABLE", {"rotated logs": (str(tmp_path), (".gz", ".1"))})
    monkeypatch.setattr(room, "JOURNAL", str(tmp_path / "journal"))
    (tmp_path / "journal").mkdir()
    for name in ("app.log", "app.log.1", "app.log.2.gz", "journal/system.1"):
        (tmp_path / name).write_bytes(os.urandom(8192))
    (tmp_path / "link.gz").symlink_to(tmp_path / "app.log")
    return tmp_path


class Commands:
    """Stands for Ansible's module; counts what is run."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def run_command(self, command: list[str], **_: object) -> tuple[int, str, str]:
        """Count."""
        self.ran.append(command)
        return 0, "", ""


def test_only_what_was_rotated_away_goes(logs: Path) -> None:
    assert room.may_go(str(logs)) == {"rotated logs": 16384}
    commands = Commands()
    room.free(commands, [str(logs)])
    left = {str(path.relative_to(logs)) for path in logs.rglob("*") if not path.is_dir()}
    assert left == {"app.log", "link.gz", "journal/system.1"}
    assert commands.ran == [], "a small journal stays as it is"


def test_what_is_too_much_of_the_journal_goes_by_its_own_tool(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "JOURNAL_KEPT", 4096)
    assert room.may_go(str(logs))["journal"] == 4096
    commands = Commands()
    room.free(commands, [str(logs)])
    assert commands.ran == [["journalctl", "--rotate", "--vacuum-size=4096"]]


def test_another_filesystem_is_left_alone(logs: Path) -> None:
    assert list(room.files(str(logs), (".gz", ".1"), device=-1)) == []


def test_a_folder_counts_for_itself_and_not_for_what_is_in_it() -> None:
    listed = "900\t/var/lib/loki\n950\t/var/lib\n1000\t/var\n"
    assert room.largest(listed, "/var") == {"/var/lib/loki": 900 << 10, "/var/lib": 50 << 10, "/var": 50 << 10}


@pytest.mark.parametrize(("waiting", "told"), [(4, False), (5, True)])
def test_wal_that_waits_for_the_archive_is_named(tmp_path: Path, waiting: int, told: bool) -> None:
    (tmp_path / "archive_status").mkdir()
    for number in range(waiting):
        (tmp_path / f"00000001000000000000000{number}").write_bytes(b"x" * 4096)
        (tmp_path / "archive_status" / f"00000001000000000000000{number}.ready").touch()
    line = room.waiting_wal(str(tmp_path))
    assert ("WalArchivingFails" in line) == told


def test_a_short_disk_is_told_in_a_line() -> None:
    line = room.words("/var", {"percent": 3, "free": 3 << 20, "size": 100 << 20}, {"/var/lib/x": 1 << 20}, {})
    assert line == "/var has 3 % free (3.0 MiB of 100.0 MiB); may go: nothing; most is in /var/lib/x 1.0 MiB"
