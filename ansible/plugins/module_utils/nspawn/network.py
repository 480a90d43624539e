"""One bridge and two nft tables per fleet. Machines reach each other and the world; only this computer reaches them."""

import ipaddress
import json
from pathlib import Path

from .system import run

_RULES = """
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
  }}
}}
flush table ip {table}
table ip {table} {{
  chain postrouting {{
    ip saddr {subnet} oifname != "{bridge}" masquerade
  }}
  chain forward {{
    # Answers come in; nothing else is forwarded to the machines, neither from outside nor from another fleet.
    oifname "{bridge}" iifname != "{bridge}" ct state != {{ established, related }} drop
  }}
}}
table bridge {table} {{
  # Links that are wholly cut, and links that are cut from the other machines only.
  set cut {{ type ifname; }}
  set lonely {{ type ifname; }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
  }}
}}
flush table bridge {table}
table bridge {table} {{
  chain forward {{
    iifname @cut drop
    oifname @cut drop
    iifname @lonely drop
    oifname @lonely drop
  }}
  chain input {{
    iifname @cut drop
  }}
  chain output {{
    oifname @cut drop
  }}
}}
"""


def dropping_chains() -> list[str]:
    """Return the firewall chains of others on this computer that drop forwarded packets unless told otherwise."""
    done = run("nft", "--json", "list", "chains", check=False)
    chains = [entry["chain"] for entry in json.loads(done.stdout or '{"nftables": []}')["nftables"] if "chain" in entry]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
    ]


def link_name(machine: str) -> str:
    """Return the name of the machine's link on the bridge, as systemd-nspawn gives it."""
    return f"vb-{machine}"


class Network:
    """The bridge `br-<tag>` with its subnet, and the nft tables `arches_<tag>`."""

    def __init__(self, tag: str, subnet: ipaddress.IPv4Network) -> None:
        self.subnet = subnet
        self.bridge = f"br-{tag}"
        self.table = f"arches_{tag}"
        self.gateway = subnet[1]

    def exists(self) -> bool:
        """Whether both the bridge and the tables are there."""
        if not Path("/sys/class/net", self.bridge).exists():
            return False
        tables = run("nft", "list", "tables").stdout.split("\n")
        return {f"table ip {self.table}", f"table bridge {self.table}"} <= set(tables)

    def leftovers(self) -> bool:
        """Whether the bridge or any table is there."""
        tables = run("nft", "list", "tables").stdout
        return Path("/sys/class/net", self.bridge).exists() or f" {self.table}\n" in tables

    def up(self) -> None:
        """Make the bridge and the tables."""
        if not Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "add", self.bridge, "type", "bridge", "forward_delay", "0")
        run("ip", "address", "replace", f"{self.gateway}/{self.subnet.prefixlen}", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        run("nft", "-f", "-", stdin=_RULES.format(table=self.table, subnet=self.subnet, bridge=self.bridge))

    def down(self) -> None:
        """Remove the bridge and the tables, whichever of them exist."""
        for family in ("ip", "bridge"):
            run("nft", "-f", "-", stdin=f"table {family} {self.table}\ndelete table {family} {self.table}\n")
        run("ip", "link", "delete", self.bridge, check=False)

    def cuts(self) -> dict[str, str]:
        """Return the links that are cut now: link name -> "cut" (from everybody) or "lonely" (from other machines)."""
        done = run("nft", "--json", "list", "table", "bridge", self.table, check=False)
        if done.returncode:
            return {}
        sets = [entry["set"] for entry in json.loads(done.stdout)["nftables"] if "set" in entry]
        return {link: item["name"] for item in sets for link in item.get("elem", [])}

    def cut(self, links: list[str], peers_only: bool) -> None:
        """Cut links from everybody, or from the other machines only."""
        self.heal(links)
        self._elements("add", "lonely" if peers_only else "cut", links)

    def heal(self, links: list[str]) -> None:
        """Restore links."""
        now = self.cuts()
        for name in ("cut", "lonely"):
            self._elements("delete", name, [link for link in links if now.get(link) == name])

    def _elements(self, verb: str, name: str, links: list[str]) -> None:
        if links:
            run("nft", verb, "element", "bridge", self.table, name, "{", ", ".join(links), "}")


def silence(link: str) -> None:
    """Take a link down, so that nothing its machine says from now on is heard."""
    run("ip", "link", "set", link, "down", check=False)


def remove_link(link: str) -> None:
    """Remove a link that outlived its machine."""
    if Path("/sys/class/net", link).exists():
        run("ip", "link", "delete", link, check=False)


def networks_here() -> dict[str, ipaddress.IPv4Network]:
    """Return the networks on this computer's own interfaces, by interface name."""
    links = json.loads(run("ip", "-json", "-4", "address", "show").stdout)
    return {
        link["ifname"]: ipaddress.IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False)
        for link in links
        for info in link.get("addr_info", [])
    }
