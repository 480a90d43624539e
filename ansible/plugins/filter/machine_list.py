"""Filter `machine_list`: what the module nspawn wants to know about hosts, from their variables."""

from collections.abc import Mapping
from typing import Any


def machine_list(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one machine per host name: its name, and address, memory_mb, cpus, volumes as far as given."""
    wanted = ("address", "memory_mb", "cpus", "volumes")
    return [{"name": host} | {key: hostvars[host][key] for key in wanted if key in hostvars[host]} for host in hosts]


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"machine_list": machine_list}
