"""Data directories of a rewind: each step can be repeated, and none takes one state for another."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lib.plugins import load_plugin
from patroni_config import PatroniConfig
from restored_server import Patience, RestoredServer

rewind = load_plugin("modules", "postgres_rewind")

AWAY = "ERROR: [049]: [HostConnectError] unable to connect to '192.0.2.41:7070'"


class Member(PatroniConfig):
    """A member whose data is a text; etcd only counts what it is asked to forget."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            {"scope": "arches", "postgresql": {"data_dir": f"{folder}/arches", "bin_dir": "/bin"}, "etcd3": {}}
        )
        self.forgotten = 0

    def forget_leader(self) -> None:
        """Count."""
        self.forgotten += 1

    def put(self, name: str) -> None:
        """A data directory that knows its first name."""
        Path(name).mkdir()
        Path(name, "is").write_text(name)

    def state(self) -> dict[str, str]:
        """First names by present names."""
        folder = Path(self.data).parent
        return {path.name: (path / "is").read_text().rpartition("/")[2] for path in sorted(folder.iterdir())}


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Member:
    """A member that serves no data."""
    monkeypatch.setattr(rewind, "run", lambda words: subprocess.CompletedProcess(words, 3))
    monkeypatch.setattr(RestoredServer, "stop", lambda self: None)
    member = Member(tmp_path)
    member.put(member.data)
    return member


def test_set_aside_once(member: Member) -> None:
    assert rewind.aside(member, "2")
    assert not rewind.aside(member, "2")
    assert member.state() == {"arches.before-2": "arches"}


def test_data_that_is_served_is_not_moved(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewind, "run", lambda words: subprocess.CompletedProcess(words, 0))
    with pytest.raises(rewind.RewindError, match="Postgres still runs here"):
        rewind.aside(member, "2")
    assert member.state() == {"arches": "arches"}


def test_the_restored_state_takes_its_place_once_and_the_former_leader_is_forgotten(member: Member) -> None:
    rewind.aside(member, "2")
    member.put(f"{member.data}.rewound-2")
    assert rewind.swap(member, "2")
    assert not rewind.swap(member, "2")
    assert member.state() == {"arches": "arches.rewound-2", "arches.before-2": "arches"}
    assert member.forgotten == 1


def test_nothing_is_replaced_by_the_restored_state(member: Member) -> None:
    member.put(f"{member.data}.rewound-2")
    with pytest.raises(rewind.RewindError, match=r"Something came to .*arches meanwhile"):
        rewind.swap(member, "2")
    assert member.forgotten == 0


def test_a_restored_state_that_is_gone_is_said(member: Member) -> None:
    rewind.aside(member, "2")
    with pytest.raises(rewind.RewindError, match=r"rewound-2 is gone. Begin anew with -e restart=true"):
        rewind.swap(member, "2")


def test_what_was_set_aside_returns_and_not_an_older_one(member: Member) -> None:
    member.put(f"{member.data}.before-1")
    rewind.aside(member, "2")
    member.put(f"{member.data}.rewound-2")
    assert rewind.back(member, "2")
    assert not rewind.back(member, "2")
    assert member.state() == {"arches": "arches", "arches.before-1": "arches.before-1"}


def test_only_what_is_meant_is_forgotten(member: Member) -> None:
    for name in ("before-1", "before-2", "removed-0"):
        member.put(f"{member.data}.{name}")
    assert rewind.forget(member, "2")
    assert list(member.state()) == ["arches", "arches.before-1"]
    assert not rewind.forget(member, "2")
    assert rewind.forget(member, None)
    assert list(member.state()) == ["arches"]


def test_a_look_says_what_is_there_and_whether_there_is_room(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "alive", lambda: ["data2"])
    member.put(f"{member.data}.before-1")
    assert rewind.look(member, 1 << 10) == {"data": True, "marks": ["1"], "short": "", "alive": ["data2"]}
    assert "needs 1048577.0 GiB beside its data and has" in rewind.look(member, 1 << 50)["short"]


def test_a_store_that_is_away_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("restored_server.time.monotonic", lambda: now[0])
    patience = Patience()

    def after(seconds: float, said: str = AWAY) -> bool:
        patience.begin()
        now[0] += seconds
        return patience.bears(said)

    assert not after(1, "FATAL: no such file"), "another failure does not get better by waiting"
    assert after(50)
    assert after(50)
    assert after(3600), "work that went on for an hour begins a new count"
    assert [after(110) for _ in range(7)] == [True] * 5 + [False] * 2


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("FATAL:  recovery ended before configured recovery target was reached", "The archive ends before the target"),
        (f"{AWAY}\nFATAL:  recovery ended before configured recovery target was reached", "Is it up"),
        ("PANIC:  could not locate a valid checkpoint record", "The recovery failed (PANIC:  could not locate"),
    ],
)
def test_why_a_recovery_did_not_arrive(said: str, means: str) -> None:
    server: Any = RestoredServer("arches-copy", "/nowhere", "/bin")
    assert means in server._why_not_arrived(said)
