"""Which fleets this computer has: their subnets, short names and owners, so that no two of them meet."""

import hashlib
import ipaddress
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from .network import networks_here
from .system import NspawnError, locked, write_file

_DERIVED = [ipaddress.IPv4Network(f"10.89.{third}.0/24") for third in range(256)]


@dataclass(frozen=True)
class Entry:
    """A fleet in the register; `state_dir` is the state directory of the checkout that owns it."""

    id: str
    tag: str
    subnet: str
    state_dir: str


class Registry:
    """The fleets below `home`, one folder each."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folder(self, fleet_id: str) -> Path:
        """Return where the fleet keeps its machines."""
        return self.home / "fleets" / fleet_id

    def kept(self, fleet_id: str) -> Path:
        """Return where volumes lie that outlive the fleet's machines, in a folder per machine."""
        return self.home / "volumes" / fleet_id

    def entry(self, fleet_id: str) -> Entry | None:
        """Return what is known about a fleet."""
        try:
            return Entry(**json.loads((self.folder(fleet_id) / "fleet.json").read_text()))
        except FileNotFoundError:
            return None

    def busy(self, fleet_id: str) -> AbstractContextManager[None]:
        """Hold the fleet: one run at a time changes it."""
        return locked(self.home / "locks" / fleet_id, seconds=120, what=f"The fleet {fleet_id}")

    def choose_subnet(self, fleet_id: str) -> ipaddress.IPv4Network:
        """Return a free subnet for the fleet, always the same one as long as it is free."""
        taken = self._taken(fleet_id)
        start = int(hashlib.sha256(fleet_id.encode()).hexdigest(), 16)
        for step in range(len(_DERIVED)):
            subnet = _DERIVED[(start + step) % len(_DERIVED)]
            if not any(subnet.overlaps(network) for network in taken.values()):
                return subnet
        raise NspawnError(
            f"All {len(_DERIVED)} subnets are taken: remove fleets that are not needed ({self.home}/fleets)."
        )

    def check(self, entry: Entry) -> None:
        """Raise NspawnError when the fleet's short name or subnet is taken by something else."""
        for other in self._others(entry.id):
            if other.tag == entry.tag:
                raise NspawnError(f"The fleets {entry.id} and {other.id} share the short name {entry.tag}: rename one.")
        subnet = ipaddress.IPv4Network(entry.subnet)
        for owner, network in self._taken(entry.id, entry.tag).items():
            if subnet.overlaps(network):
                raise NspawnError(
                    f"The subnet {subnet} of the fleet {entry.id} overlaps {network} of {owner}. Give it another "
                    "`subnet`, and its hosts other addresses, in the inventory."
                )

    def register(self, entry: Entry) -> None:
        """Check the fleet and write it down."""
        with locked(self.home / "locks" / ".register", seconds=60, what="The register of fleets"):
            self.check(entry)
            self.folder(entry.id).mkdir(parents=True, exist_ok=True)
            write_file(self.folder(entry.id) / "fleet.json", json.dumps(asdict(entry), indent=1))

    def _others(self, fleet_id: str) -> list[Entry]:
        names = [path.parent.name for path in (self.home / "fleets").glob("*/fleet.json")]
        return [entry for name in names if name != fleet_id and (entry := self.entry(name))]

    def _taken(self, fleet_id: str, tag: str = "") -> dict[str, ipaddress.IPv4Network]:
        """Return the networks that this fleet must keep clear of, by who has them."""
        taken = {f"the fleet {other.id}": ipaddress.IPv4Network(other.subnet) for other in self._others(fleet_id)}
        interfaces = {f"the interface {name}": net for name, net in networks_here().items() if name != f"br-{tag}"}
        return taken | interfaces
