"""What the plugin tests share: running a playbook on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


class Play:
    """Result of one playbook run on this machine: return code, output and the results of the tasks by name."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.output = process.stdout + process.stderr
        _, found, report = f"\n{process.stdout}".partition("\n{\n")
        data: dict[str, Any] = json.JSONDecoder().raw_decode("{" + report)[0] if found else {"plays": []}
        self.results: list[tuple[str, dict[str, Any]]] = [
            (task["task"]["name"].rpartition(" : ")[2], next(iter(task["hosts"].values())))
            for play in data["plays"]
            for task in play["tasks"]
            if task["hosts"]
        ]
        self.tasks = dict(self.results)

    def all_of(self, name: str) -> list[dict[str, Any]]:
        """Results of every task of that name, in order."""
        return [result for task, result in self.results if task == name]


@pytest.fixture
def run_play(tmp_path: Path) -> Callable[..., Play]:
    """A function that writes a playbook of the given tasks (or roles) into tmp_path and runs it locally."""

    def run(*options: str, **play: Any) -> Play:
        playbook = tmp_path / "play.yml"
        playbook.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, **play}]))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(tmp_path / "roles"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_LOCALHOST_WARNING": "false",
        }
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(
            json.dumps({"all": {"hosts": {"localhost": {"ansible_python_interpreter": sys.executable}}}})
        )
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, *options, playbook]
        process = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Play(process)

    return run
