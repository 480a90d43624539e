"""A running fleet of local machines, seen from outside: inventory, ssh, machine faults, status, playbooks."""

import functools
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".venv" / "bin"


class PlaybookFailed(AssertionError):
    """A playbook ended with a failure; the message carries the end of its output."""


@dataclass(frozen=True)
class PlaybookResult:
    """Output and recap of one ansible-playbook run."""

    output: str
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        """Sum of changed tasks over all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())


class Fleet:
    """One environment of local machines.

    :param inventory: directory below ``inventories/``, e.g. ``local``.
    :raises ValueError: if the environment is not made of local machines; tests destroy things.
    """

    def __init__(self, inventory: str = "local") -> None:
        self.inventory = REPOSITORY / "inventories" / inventory
        listed = subprocess.run(
            [BIN / "ansible-inventory", "-i", self.inventory, "--list"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        data = json.loads(listed.stdout)
        self.variables: dict[str, dict[str, Any]] = data["_meta"]["hostvars"]
        self.groups = {name: group.get("hosts", []) for name, group in data.items() if name != "_meta"}
        self.groups["all"] = sorted(self.variables)
        anyone = next(iter(self.variables.values()))
        if anyone["machine_provider"] != "nspawn":
            raise ValueError(f"{self.inventory}: tests destroy things and run on local machines only")
        self.services: dict[str, dict[str, Any]] = anyone["services"]
        self.domain: str = anyone["domain"]
        self.state = self.inventory / ".state"

    def exists(self) -> bool:
        """Whether machines of this environment are on this computer, running or not."""
        return any(self._kept_here("fleets", "machines/*"))

    def keeps(self) -> bool:
        """Whether volumes of this environment are kept on this computer."""
        return any(self._kept_here("volumes", "*/*.ext4"))

    def _kept_here(self, what: str, pattern: str) -> Iterator[Path]:
        home = Path(os.environ.get("ARCHES_STATE", "/var/lib/arches"))
        anyone: dict[str, Any] = next(iter(self.variables.values()))
        return (home / what / str(anyone["fleet"]["id"])).glob(pattern)

    @property
    def ca(self) -> Path:
        """Certificate of the environment's CA."""
        return self.state / "ca.crt"

    def address(self, host: str) -> str:
        """The host's IPv4 address."""
        return str(self.variables[host]["address"])

    def ports(self, service: str, host: str) -> range:
        """Ports of a service of the map on one host (several when the map says ``count``)."""
        entry = self.services[service]
        count = entry.get("count", 1)
        return range(entry["port"], entry["port"] + int(self.variables[host]["cpus"] if count == "per_core" else count))

    def ssh(
        self, host: str, command: str, check: bool = True, timeout_s: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on a host.

        :raises subprocess.CalledProcessError: on a non-zero status, unless ``check`` is false.
        :raises subprocess.TimeoutExpired: after ``timeout_s`` seconds.
        """
        line: list[str | Path] = [
            "ssh", "-i", self.state / "ssh/id_ed25519", "-o", f"UserKnownHostsFile={self.state / 'ssh/known_hosts'}",
            "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=3",
            "-o", "LogLevel=ERROR",
            f"ops@{self.address(host)}", "sudo sh -c " + shlex.quote(command),
        ]  # fmt: skip
        # Never ours: ssh makes it non-blocking, which Ansible, in another thread, refuses.
        return subprocess.run(line, capture_output=True, text=True, check=check, timeout=timeout_s, input=stdin or "")

    def playbook(self, name: str, *arguments: str, check: bool = True, timeout_s: float = 900) -> PlaybookResult:
        """Run a playbook of the repository on this environment.

        :raises PlaybookFailed: when it ends with a failure and ``check`` is true.
        """
        line = [str(BIN / "ansible-playbook"), name, "-i", str(self.inventory), *arguments]
        environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}
        done = subprocess.run(
            line, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            env=environment, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        if check and done.returncode:
            raise PlaybookFailed(f"{' '.join(line)} -> {done.returncode}\n{output[-6000:]}")
        return PlaybookResult(output, _recap(done.stdout))

    def machines(self, state: str, *hosts: str) -> None:
        """Put local machines into a state (present, killed, partitioned, healed, absent, stopped)."""
        limit = ["--limit", ",".join(hosts)] if hosts else []
        self.playbook("ansible/machines.yml", "-e", f"state={state}", *limit, timeout_s=180)

    def status(self) -> tuple[int, dict[str, Any]]:
        """Exit status and document of ``make status FORMAT=json``."""
        done = subprocess.run(
            ["make", "--silent", "--no-print-directory", "status", "FORMAT=json", f"ENV={self.inventory.name}"],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        try:
            return done.returncode, json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise AssertionError(f"status printed no JSON: {done.stdout[-500:]!r} {done.stderr[-500:]!r}") from error

    def healthy(self) -> bool:
        """Whether ``make status`` finds everything healthy."""
        return self.status()[0] == 0

    def unit_starts(self) -> dict[str, dict[str, str]]:
        """Start time of every running service unit, by host: what a run that restarts nothing leaves as it was."""
        return {host: self._unit_starts(host) for host in self.groups["all"]}

    def _unit_starts(self, host: str) -> dict[str, str]:
        shown = self.ssh(
            host,
            "systemctl show -p Id -p ActiveEnterTimestampMonotonic "
            "$(systemctl list-units --type=service --state=running --plain --no-legend | cut -d' ' -f1)",
        ).stdout
        blocks = (dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n"))
        # Sessions and their managers come and go with every ssh connection.
        return {b["Id"]: b["ActiveEnterTimestampMonotonic"] for b in blocks if not b["Id"].startswith(("user", "ssh@"))}


def _recap(output: str) -> dict[str, dict[str, int]]:
    lines = output.partition("PLAY RECAP")[2].splitlines()[1:]
    recap = {}
    for line in lines:
        host, separator, counts = line.partition(" : ")
        if separator:
            recap[host.strip()] = {k: int(v) for k, v in (pair.split("=") for pair in counts.split())}
    return recap


@functools.cache
def local_fleet() -> Fleet:
    """The fleet of ``make up``."""
    return Fleet("local")
