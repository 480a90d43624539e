"""Ansible understands every playbook."""

import os
import subprocess
import sys
from pathlib import Path

from rules.environments import ROOT
from rules.repository import Repository


def syntax_check(playbooks: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`ansible-playbook --syntax-check` on some playbooks at once."""
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "inventories/local", "--syntax-check", *playbooks],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )  # fmt: skip


def test_every_playbook_is_understood(repository: Repository) -> None:
    done = syntax_check(repository.playbooks, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_playbook_is_seen(tmp_path: Path) -> None:
    (tmp_path / "inventories" / "local").mkdir(parents=True)
    (tmp_path / "inventories" / "local" / "hosts.yml").write_text("all: {hosts: {a: {}}}")
    (tmp_path / "a.yml").write_text("- name: A\n  hosts: a\n  tasks:\n    - name: B\n      ansible.builtin.nothing:\n")
    assert syntax_check(["a.yml"], tmp_path).returncode != 0
