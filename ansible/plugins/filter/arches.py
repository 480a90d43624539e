"""Derivations from the service map and the inventory that need more than one line of Jinja. Pure functions."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

type Hosts = Mapping[str, Mapping[str, Any]]
type Groups = Mapping[str, Sequence[str]]


def host_lines(hosts: Sequence[str], hostvars: Hosts, domain: str) -> list[dict[str, Any]]:
    """Lines of /etc/hosts: every host's address with its short and its full name."""
    return [{"address": hostvars[host]["address"], "names": [f"{host}.{domain}", host]} for host in hosts]


def edge_lines(hosts: Sequence[str], hostvars: Hosts, domain: str) -> list[dict[str, Any]]:
    """Lines of /etc/hosts: the API's public name at every edge host."""
    return [{"address": hostvars[host]["address"], "names": [f"api.{domain}"]} for host in hosts]


def instances(service: Mapping[str, Any], cpus: int) -> int:
    """Number of ports that one service takes on a host with this many cores."""
    return cpus if service.get("count") == "per_core" else int(service.get("count", 1))


def ports(service: Mapping[str, Any], cpus: int) -> str:
    """Ports of one service as nftables writes them: "8080" or "9090-9091". `per_core` needs the host's cores."""
    count = instances(service, cpus)
    first = int(service["port"])
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def sources(parties: Sequence[str], groups: Groups, hostvars: Hosts, controller: Sequence[str]) -> list[str]:
    """Networks behind the names in a service's `from`, none inside another; `any` alone for the whole world."""
    if "world" in parties:
        return ["any"]
    found: list[str] = []
    for party in parties:
        if party == "controller":
            found += controller
        else:
            found += [hostvars[host]["address"] for host in groups.get(party, [])]
    networks = ipaddress.collapse_addresses(ipaddress.IPv4Network(address) for address in found)
    return [str(network).removesuffix("/32") for network in networks]


def firewall_rules(
    services: Mapping[str, Mapping[str, Any]], host: str, groups: Groups, hostvars: Hosts, controller: Sequence[str]
) -> list[dict[str, Any]]:
    """What may reach a host, one rule for each of its services that anybody but the host itself may connect to.

    `controller` are the addresses of the outside party of that name.
    """
    rules = []
    for name, service in services.items():
        admitted = sources(service["from"], groups, hostvars, controller)
        if host in groups.get(service["hosts"], []) and admitted:
            rules.append({"comment": name, "ports": ports(service, hostvars[host]["cpus"]), "sources": admitted})
    return rules


def certificates(host: str, address: str, member_of: Sequence[str], domain: str) -> list[dict[str, Any]]:
    """Certificates that a host has: its own, and on the edge the one that the API's clients see.

    A data host also answers to `postgres`, so that clients can verify whoever leads.
    """
    names = [host, "localhost", address, "127.0.0.1"]
    if "data" in member_of:
        names.insert(1, "postgres")
    own = {"name": "host", "common_name": host, "names": names}
    if "edge" not in member_of:
        return [own]
    return [own, {"name": "edge", "common_name": f"api.{domain}", "names": [f"api.{domain}"]}]


def s3_accounts(secrets: Mapping[str, str], bucket: str) -> list[dict[str, str]]:
    """Accounts of the object store whose keys are among some secrets: who makes backups writes, who proves reads."""
    return [
        {
            "access_key": secrets[f"s3_{account}_access_key"],
            "secret_key": secrets[f"s3_{account}_secret_key"],
            "bucket": bucket,
            "rights": rights,
        }
        for account, rights in {"backups": "write", "prover": "read"}.items()
        if f"s3_{account}_access_key" in secrets
    ]


def scrape_jobs(services: Mapping[str, Mapping[str, Any]], groups: Groups, hostvars: Hosts) -> list[dict[str, Any]]:
    """What Prometheus scrapes, one job for each service with `metrics`, through the metrics gateway of its hosts.

    Each target has the gateway's address, the module to ask there (`gateway_modules`), its host and its instance.
    """
    gateway = services["metrics_gateway"]["port"]
    jobs = []
    for name, service in services.items():
        if "metrics" not in service:
            continue
        targets = []
        for host in groups.get(service["hosts"], []):
            count = instances(service, hostvars[host]["cpus"])
            targets += [
                {
                    "target": f"{hostvars[host]['address']}:{gateway}",
                    "module": name if count == 1 else f"{name}-{number}",
                    "host": host,
                    "instance": host if count == 1 else f"{host}:{number}",
                }
                for number in range(1, count + 1)
            ]
        jobs.append({"job": name, "targets": targets})
    return jobs


def probe_jobs(
    probes: Sequence[Mapping[str, str]], services: Mapping[str, Mapping[str, Any]], groups: Groups, hostvars: Hosts
) -> list[dict[str, Any]]:
    """What is asked from outside: for each probe its job, its module, and a target on every host of its service.

    A probe is {job, module, service, target}; `target` holds {address} and {port}.
    """
    return [
        {
            "job": probe["job"],
            "module": probe["module"],
            "targets": [
                {
                    "host": host,
                    "target": probe["target"].format(
                        address=hostvars[host]["address"], port=services[probe["service"]]["port"]
                    ),
                }
                for host in groups.get(services[probe["service"]]["hosts"], [])
            ],
        }
        for probe in probes
    ]


def gateway_modules(
    services: Mapping[str, Mapping[str, Any]], host: str, groups: Groups, hostvars: Hosts
) -> dict[str, dict[str, Any]]:
    """What the metrics gateway of a host passes on, by module: where the host's own services say how they are.

    A module has the service's name; with several ports, their numbers from 1 after it (`api_metrics-1`).
    """
    modules = {}
    for name, service in services.items():
        if "metrics" not in service or host not in groups.get(service["hosts"], []):
            continue
        wanted = {"path": "/metrics", "scheme": "http", "address": "loopback", **(service["metrics"] or {})}
        count = instances(service, hostvars[host]["cpus"])
        for number in range(1, count + 1):
            modules[name if count == 1 else f"{name}-{number}"] = {
                "scheme": wanted["scheme"],
                "address": "127.0.0.1" if wanted["address"] == "loopback" else hostvars[host]["address"],
                "port": int(service["port"]) + number - 1,
                "path": wanted["path"],
            }
    return modules


# Bytes on the disk that one line costs in the journal, fields and index included. Measured: 800 for lines of 200 bytes.
JOURNAL_LINE_BYTES = 1024


def journal_size(lines_per_second: int, hours: int) -> str:
    """Limit of the journal, as journald writes it, that holds a host's lines for some hours.

    journald deletes whole files, an eighth of the limit each, so only seven eighths are certain to be there.
    """
    mebibytes = lines_per_second * hours * 3600 * JOURNAL_LINE_BYTES / 1024**2
    return f"{math.ceil(mebibytes * 8 / 7)}M"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "certificates": certificates,
            "edge_lines": edge_lines,
            "firewall_rules": firewall_rules,
            "gateway_modules": gateway_modules,
            "host_lines": host_lines,
            "journal_size": journal_size,
            "probe_jobs": probe_jobs,
            "s3_accounts": s3_accounts,
            "scrape_jobs": scrape_jobs,
        }
