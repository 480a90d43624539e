"""Refuse a ruleset that nft does not understand, or that would lock out whoever is applying it.

Arguments: the ruleset's file, and the rules it was made from as JSON. Runs on the host, below the ssh session that
applies the rules; that session's environment says where it comes from. Without one (a console) nobody is locked out.
"""

import ipaddress
import json
import os
import subprocess
import sys


def ssh_connection() -> tuple[str, int] | None:
    """Address that the ssh session above this process comes from, and the port of sshd; None without a session."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/environ", "rb") as file:
            for entry in file.read().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"SSH_CONNECTION":
                    client, _, _, port = value.decode().split()
                    return client, int(port)
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return None


def admits(rules: list[dict], client: str, port: int) -> bool:
    """Whether one of the rules lets this address connect to this port."""
    address = ipaddress.ip_address(client)
    for rule in rules:
        first, _, last = rule["ports"].partition("-")
        if int(first) <= port <= int(last or first) and any(
            source == "any" or address in ipaddress.ip_network(source) for source in rule["sources"]
        ):
            return True
    return False


def main() -> int:
    """Exit code: 0 for a ruleset that may be applied."""
    ruleset, rules = sys.argv[1], json.loads(sys.argv[2])
    connection = ssh_connection()
    if connection and not admits(rules, *connection):
        client, port = connection
        print(
            f"this run comes from {client}, and no rule of firewall_rules admits it to ssh on port {port}. "
            f"Add it to the sources of ssh (the wiring takes them from controller_addresses)."
        )
        return 1
    return subprocess.run(["nft", "-c", "-f", ruleset], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
