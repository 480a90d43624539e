"""The service map is true: what it allows is open, all else is closed, and nothing listens that it does not name."""

import ipaddress
import json
from concurrent.futures import ThreadPoolExecutor

from lib.fleet import Fleet

# Runs on a host: tries every target at once and prints the open ones. Standard library only.
PROBE = """
import concurrent.futures, json, socket, sys
def reach(target):
    try:
        socket.create_connection(tuple(target), 2).close()
        return target
    except OSError:
        return None
targets = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(json.dumps([t for t in pool.map(reach, targets) if t]))
"""


def groups_of(fleet: Fleet, host: str) -> set[str]:
    return {name for name, hosts in fleet.groups.items() if host in hosts}


def not_delivered(fleet: Fleet) -> set[tuple[str, str]]:
    """(service, host) of what is optional and not installed: nothing listens there."""
    units = {
        (s, h): e["unit"] for s, e in fleet.services.items() if e.get("optional") for h in fleet.groups[e["hosts"]]
    }
    return {
        (service, host)
        for (service, host), unit in units.items()
        if "not-found" in fleet.ssh(host, f"systemctl show --property=LoadState {unit}").stdout
    }


def test_open_and_closed_ports_are_those_of_the_map(fleet: Fleet) -> None:
    every_port = sorted(
        {p for s in fleet.services for h in fleet.groups[fleet.services[s]["hosts"]] for p in fleet.ports(s, h)}
    )
    absent = not_delivered(fleet)
    wrong = []
    hosts = fleet.groups["all"]

    def reached(source: str) -> set[tuple[str, int]]:
        targets = [[fleet.address(h), p] for h in hosts if h != source for p in every_port]
        stdout = fleet.ssh(source, f"python3 -c '{PROBE}'", stdin=json.dumps(targets)).stdout
        return {(address, port) for address, port in json.loads(stdout)}

    # Nearly all of it is waiting for ports that do not answer.
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = list(zip(hosts, pool.map(reached, hosts), strict=True))
    for source, opened in found:
        others = [h for h in hosts if h != source]
        allowed = set()
        for name, entry in fleet.services.items():
            if set(entry["from"]) & (groups_of(fleet, source) | {"world"}):
                allowed |= {
                    (fleet.address(h), p)
                    for h in others
                    if h in fleet.groups[entry["hosts"]] and (name, h) not in absent
                    for p in fleet.ports(name, h)
                }
        wrong += [f"{source} -> {a}:{p} is open, the map does not allow it" for a, p in sorted(opened - allowed)]
        wrong += [f"{source} -> {a}:{p} is closed, the map allows it" for a, p in sorted(allowed - opened)]
    assert not wrong, "\n".join(wrong)


def test_every_listener_is_in_the_map(fleet: Fleet) -> None:
    wrong = []
    for host in fleet.groups["all"]:
        named: dict[int, bool] = {}
        for name, entry in fleet.services.items():
            if host in fleet.groups[entry["hosts"]]:
                named |= {port: bool(entry["from"]) for port in fleet.ports(name, host)}
        for line in fleet.ssh(host, "ss -Hltn").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            ip = address.strip("[]").partition("%")[0]
            loopback = ip != "*" and ipaddress.ip_address(ip).is_loopback
            if int(port) not in named:
                wrong.append(f"{host}: {address}:{port} is not in the service map")
            elif not loopback and not named[int(port)]:
                wrong.append(f"{host}: {address}:{port} should be on loopback only")
    assert not wrong, "\n".join(wrong)


def test_the_controller_reaches_what_the_map_gives_it(fleet: Fleet) -> None:
    import socket

    for name, entry in fleet.services.items():
        if {"controller", "world"} & set(entry["from"]):
            for host in fleet.groups[entry["hosts"]]:
                for port in fleet.ports(name, host):
                    socket.create_connection((fleet.address(host), port), 3).close()
