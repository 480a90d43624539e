"""What the inventory says about machines, and the names and addresses that follow. Nothing here touches the system."""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .system import NspawnError

LONGEST_NAME = 12  # a machine's link is called vb-<name>, and a link's name has at most 15 characters
SMALLEST_VOLUME_MB = 16
FIRST_CHOSEN = 10  # hosts of a subnet before this one are left to people who choose addresses themselves


@dataclass(frozen=True)
class Volume:
    """A file system of its own, `size_mb` MiB large, at `path` in a machine; with `keep` it outlives the machine."""

    name: str
    path: str
    size_mb: int
    keep: bool = False


@dataclass(frozen=True)
class Wish:
    """One machine as the caller describes it: MiB of memory, cores; the fleet chooses an address that is None."""

    name: str
    address: str | None
    memory_mb: int
    cpus: float
    volumes: tuple[Volume, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A wish with its address."""

    name: str
    address: str
    memory_mb: int
    cpus: float
    volumes: tuple[Volume, ...] = ()


def tag_of(fleet_id: str) -> str:
    """Return the short form of a fleet's id that fits into the names of links, tables and machines."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", fleet_id):
        raise NspawnError(f"The fleet's id {fleet_id!r} is not a name: use small letters, digits and dashes.")
    return fleet_id if len(fleet_id) <= 5 else hashlib.sha256(fleet_id.encode()).hexdigest()[:3]


def full_name(tag: str, name: str) -> str:
    """Return what the machine `name` is called on this computer; raises NspawnError when no link can be named so."""
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise NspawnError(f"The machine name {name!r} is not a host name: use small letters, digits and dashes.")
    full = f"{tag}-{name}"
    if len(full) > LONGEST_NAME:
        raise NspawnError(
            f"The machine name {full} is {len(full)} characters long and {LONGEST_NAME} fit: "
            f"shorten the host's name {name}, or the fleet's id."
        )
    return full


def check_volumes(wish: Wish) -> None:
    """Raise NspawnError for a volume that no machine can have, and for a name or path that occurs twice."""
    for volume in wish.volumes:
        what = f"The volume {volume.name!r} of {wish.name}"
        if not re.fullmatch(r"[a-z0-9-]+", volume.name):
            raise NspawnError(f"{what} has no usable name: use small letters, digits and dashes.")
        # The first ones are file systems of the machine's own, made when it boots.
        if not re.fullmatch(r"(?!/(?:dev|proc|run|sys|tmp)(?:/|$))(?:/(?!\.+(?:/|$))[A-Za-z0-9_.@-]+)+", volume.path):
            raise NspawnError(
                f"{what} cannot be at {volume.path!r}: write an absolute path of letters, digits and any of `_.@-`, "
                "not below /dev, /proc, /run, /sys or /tmp."
            )
        if volume.size_mb < SMALLEST_VOLUME_MB:
            raise NspawnError(f"{what} is too small: write `size_mb: {SMALLEST_VOLUME_MB}` or more.")
    for twice in ("name", "path"):
        values = [getattr(volume, twice) for volume in wish.volumes]
        if len(set(values)) < len(values):
            raise NspawnError(f"Two volumes of {wish.name} have the same {twice}: give each its own.")


def assign(wishes: list[Wish], held: Mapping[str, str], subnet: ipaddress.IPv4Network) -> dict[str, Spec]:
    """Return a spec per machine name; `held` are the addresses that the fleet's machines have now, by name.

    Raises NspawnError for a name or address that occurs twice, for an address that is not a host's in `subnet`, and
    for volumes that cannot be.
    """
    for wish in wishes:
        check_volumes(wish)
    wanted = {wish.name: wish.address or held.get(wish.name) for wish in wishes}
    if len(wanted) < len(wishes):
        names = [wish.name for wish in wishes]
        twice = next(name for name in names if names.count(name) > 1)
        raise NspawnError(f"The machine {twice} is named twice: every machine needs a name of its own.")
    hosts = [str(host) for host in subnet.hosts()]
    owners = {address: name for name, address in held.items() if name not in wanted}
    for name, address in wanted.items():
        if address is None:
            continue
        if address not in hosts[1:]:  # the first one is the bridge
            raise NspawnError(f"The address {address} of {name} is not a host's in the fleet's subnet {subnet}.")
        if address in owners:
            raise NspawnError(f"{owners[address]} and {name} both have the address {address}: change one of them.")
        owners[address] = name
    free = (host for host in hosts[FIRST_CHOSEN:] if host not in owners)
    return {
        wish.name: Spec(wish.name, wanted[wish.name] or next(free), wish.memory_mb, wish.cpus, wish.volumes)
        for wish in wishes
    }
