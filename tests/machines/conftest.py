"""Real machines of throw-away fleets. The fleets have fixed names, so that a run cleans up after one that crashed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nspawn.fleet import Fleet, Report
from nspawn.image import Image
from nspawn.machine import Machine
from nspawn.preflight import require_tools
from nspawn.registry import Registry
from nspawn.spec import Wish

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("ARCHES_STATE", "/var/lib/arches"))
STATE = REPOSITORY / "results/machines/state"
CACHE = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches"))


def image() -> Image:
    """The project's own image."""
    return Image(REPOSITORY / "ansible/image", CACHE, HOME)


class Machines:
    """A fleet and its state directory, as the module sees them: every call is a run of its own."""

    def __init__(self, fleet_id: str, state_dir: Path, *names: str) -> None:
        self.fleet_id, self.state_dir, self.names = fleet_id, state_dir, names

    def fleet(self, check: bool = False) -> Fleet:
        """The fleet as a new run finds it."""
        return Fleet(self.fleet_id, None, self.state_dir, Registry(HOME), image, check)

    def apply(self, state: str, *names: str, peers_only: bool = False) -> Report:
        """Bring the named machines, or all, into a state."""
        wishes = [Wish(name, None, 256, 1) for name in names or self.names]
        return self.fleet().apply(state, wishes, peers_only)

    def machine(self, name: str) -> Machine:
        """One machine."""
        return self.fleet().machine(name)

    def address(self, name: str) -> str:
        """The address that the machine was given."""
        record = self.machine(name).record()
        assert record is not None
        return record.address

    def ssh(self, name: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as `ops`, by the client configuration that the fleet writes."""
        line = ["ssh", "-F", str(self.state_dir / "ssh/config"), "-o", "ConnectTimeout=2", name, command]
        return subprocess.run(line, capture_output=True, text=True, check=check, timeout=20)

    def reaches(self, name: str, address: str, port: int = 22) -> bool:
        """Whether a TCP connection from inside the machine succeeds; runs there without the network's help."""
        init = self.machine(name).processes().init
        probe = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
        line = ["nsenter", "--target", str(init), "--net", "python3", "-c", probe]
        return subprocess.run(line, capture_output=True, check=False, timeout=20).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    require_tools()


@pytest.fixture(scope="session")
def _fleet() -> Iterator[Machines]:
    """The fleet `t1` with the machines a1 and b1."""
    fleet = Machines("t1", STATE, "a1", "b1")
    fleet.fleet().apply("absent", None)
    yield fleet
    fleet.fleet().apply("absent", None)
    shutil.rmtree(STATE)


@pytest.fixture
def machines(_fleet: Machines) -> Machines:
    """The fleet with both machines running, whatever the test before has left."""
    _fleet.apply("present")
    return _fleet
