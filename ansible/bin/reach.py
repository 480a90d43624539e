"""What the commands here share: what an environment's files say of its hosts, and how one is reached by ssh.

Only values that are written out are known, each from where inventories/schema.yml puts it. No Ansible is started, so an
answer comes at once.
"""

from pathlib import Path
from typing import Any

import yaml


class Refused(Exception):
    """What was asked cannot be; the message says why and what to write."""


def read(inventory: Path) -> dict[str, Any]:
    """The environment in the form of `ansible-inventory --list`. Raises Refused when there is none."""
    try:
        groups = yaml.safe_load((inventory / "hosts.yml").read_text())["all"]["children"]
        if (scaled := inventory / "scaled.yml").exists():  # written by ansible/scale.yml
            for name, more in yaml.safe_load(scaled.read_text())["all"]["children"].items():
                groups[name]["hosts"] |= more["hosts"]
        variables = yaml.safe_load((inventory.parent / "shared" / "services.yml").read_text())
        for name in ("main.yml", "sizes.yml"):
            variables |= yaml.safe_load((inventory / "group_vars" / "all" / name).read_text())
    except OSError as error:
        words = f"{error.filename} cannot be read ({error.strerror}): name a directory such as inventories/local"
        raise Refused(words) from None
    hosts: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        for host, own in (group.get("hosts") or {}).items():
            hosts.setdefault(host, dict(variables)).update(own or {})
    members = {name: {"hosts": list(group.get("hosts") or {})} for name, group in groups.items()}
    return {**members, "_meta": {"hostvars": hosts}}


def group(listed: dict[str, Any], service: str) -> list[str]:
    """Hosts that run a service of the map; none in an environment without that group."""
    services = next(iter(listed["_meta"]["hostvars"].values()))["services"]
    found: list[str] = (listed.get(services[service]["hosts"]) or {}).get("hosts") or []
    return found


def first(listed: dict[str, Any], service: str, product: str) -> tuple[str, dict[str, Any]]:
    """The host that runs a service, with its variables. Raises Refused when the environment has none."""
    hosts = listed["_meta"]["hostvars"]
    for host in group(listed, service):
        return host, hosts[host]
    name = next(iter(hosts.values()))["environment_name"]
    raise Refused(f"nobody runs `{service}` in {name} (inventories/{name}/hosts.yml), so there is no {product}")


def ssh(inventory: Path | str, host: str, variables: dict[str, Any], *options: str) -> list[str]:
    """The ssh command to a host: by the file that local machines come with, else as `ops` at its address.

    With the key that `make access` has written, where it has; else with the caller's own.
    """
    if variables["machine_provider"] == "nspawn":
        return ["ssh", "-F", f"{inventory}/.state/ssh/config", *options, host]
    key = Path(inventory) / ".state" / "ssh" / "id_ed25519"
    own = ["-i", str(key), "-o", f"UserKnownHostsFile={key.with_name('known_hosts')}"] if key.exists() else []
    return ["ssh", "-l", "ops", *own, *options, str(variables["address"])]
