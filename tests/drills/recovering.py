"""What drills of recovery playbooks have in common: type one, hear what it says, write through the edge meanwhile.

What each costs is printed and kept in results/recover: `recovered_in_s` is the time of the playbooks that are typed,
from start to proof; `gap_s` is the longest time between two acknowledged writes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drills import results
from lib.client import artifact_writer, edge_client, login, register, stored
from lib.fleet import Fleet
from lib.history import History, WriteLoad, lost
from lib.waiting import wait_for

RECOVER = "ansible/recover"


def words(**arguments: str) -> list[str]:
    """Arguments of a playbook as they are typed."""
    return [word for name, value in arguments.items() for word in ("-e", f"{name}={value}")]


def keep(name: str, repeat: int, **figures: object) -> None:
    """Print what a recovery cost, and keep it with the results."""
    results.keep("recover", f"{name}-{repeat}", figures)
    print(f"{name}-{repeat}: {figures}")


def recover(fleet: Fleet, incident: str, **arguments: str) -> str:
    """Type a recovery playbook; what it said in one line."""
    typed = words(confirm="local", restart="true", **arguments)
    output = " ".join(fleet.playbook(f"{RECOVER}/{incident}.yml", *typed).output.split())
    assert f"{incident}: recovered and proven" in output, output[-3000:]
    return output


def said(fleet: Fleet, incident: str, **arguments: str) -> str:
    """What a recovery playbook says that changes nothing."""
    result = fleet.playbook(f"{RECOVER}/{incident}.yml", *words(restart="true", **arguments), check=False)
    assert result.changed == 0 and "Nothing was changed" in result.output, result.output[-3000:]
    return " ".join(result.output.split())


class Writes:
    """Acknowledged writes through the edge while something happens, and what became of them."""

    def __init__(self, fleet: Fleet, folder: Path, repeat: int) -> None:
        self.fleet, self.history, self.repeat = fleet, History(folder / "history.jsonl"), repeat
        with edge_client(fleet) as client:
            self.account = register(client)
            self.user = login(client, self.account)
        self.gap_s = self.recovered_in_s = 0.0

    def recover(self, incident: str, **arguments: str) -> str:
        """Type a recovery playbook; what it said in one line."""
        began = time.monotonic()
        output = recover(self.fleet, incident, **arguments)
        self.recovered_in_s += time.monotonic() - began
        return output

    @contextmanager
    def through(self) -> Iterator[None]:
        """They run before, during and after."""
        with self.until_they_go_on():
            self.go_on()
            yield

    @contextmanager
    def until_they_go_on(self) -> Iterator[None]:
        """They are tried during and after, whether or not any can succeed at first."""
        # Few enough that each can be read back afterwards.
        with WriteLoad(self.history, artifact_writer(self.fleet, self.user, self.account), workers=2, pause_s=0.1):
            began = time.monotonic()
            yield
            self.go_on()
            self.gap_s = self.history.longest_gap_s(began, time.monotonic())

    def go_on(self) -> None:
        """Wait until some more were acknowledged."""
        before = self.history.counts()["ok"]
        wait_for("writes go on", lambda: self.history.counts()["ok"] >= before + 30, timeout_s=120)

    def keep(self, name: str, **figures: object) -> None:
        """No acknowledged write is missing; the figures are printed and kept."""
        with edge_client(self.fleet) as client:
            self.user = login(client, self.account)
        missing = lost(self.history, stored(self.fleet, self.user, self.history))
        took, gap, counts = round(self.recovered_in_s), round(self.gap_s, 1), self.history.counts()
        keep(name, self.repeat, recovered_in_s=took, gap_s=gap, lost=len(missing), **counts, **figures)
        assert missing == []
