"""What a Molecule scenario's tests do besides looking: apply the role again, reach the other machines."""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import testinfra  # type: ignore[import-untyped]
from testinfra.host import Host  # type: ignore[import-untyped]

PROJECT = Path(__file__).resolve().parents[2]


def machine(name: str) -> Host:
    """A connection to a machine of the scenario."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"])


def play(
    playbook: str | Path = PROJECT / "molecule/converge.yml",
    variables: Mapping[str, Any] | None = None,
    *options: str,
) -> dict[str, int]:
    """Run a playbook as the scenario does, by default the role itself.

    :return: number of changes of each host.
    :raises AssertionError: with the run's output if a host failed.
    """
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    command = ["ansible-playbook", "-i", inventory, "-e", json.dumps(variables or {}), *options, str(playbook)]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    run = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.JSONDecoder().raw_decode(run.stdout[run.stdout.index("{\n") :])[0]
    return {host: numbers["changed"] for host, numbers in report["stats"].items()}


def feed(host: Host, command: str, text: str = "") -> str:
    """What a root shell on a machine prints when it is given a text of any length; bytes that are no text are replaced.

    :raises subprocess.CalledProcessError: on a non-zero status.
    """
    keys = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/state/ssh"
    address = host.ansible.get_variables()["ansible_host"]
    words = ["ssh", "-F", "none", "-i", f"{keys}/id_ed25519", "-o", f"UserKnownHostsFile={keys}/known_hosts"]
    words += ["-o", "LogLevel=ERROR", f"ops@{address}", "sudo sh -c " + shlex.quote(command)]
    done = subprocess.run(words, input=text.encode(), capture_output=True, check=True, timeout=120)
    return done.stdout.decode(errors="replace")
