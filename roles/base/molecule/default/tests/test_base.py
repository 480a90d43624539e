"""What every host has: people get in by key and nobody else, names resolve, the journal is kept and bounded."""

from __future__ import annotations

import os
import subprocess

import pytest

STATE = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/state/ssh"


def ssh(host, user: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Log in from the controller, with the scenario's key unless the options say otherwise."""
    address = host.ansible.get_variables()["ansible_host"]
    known = f"UserKnownHostsFile={STATE}/known_hosts"
    words = ["ssh", "-F", "none", "-i", f"{STATE}/id_ed25519", "-o", known, "-o", "BatchMode=yes", *options]
    return subprocess.run(
        [*words, f"{user}@{address}", command], capture_output=True, text=True, timeout=20, check=False
    )


def test_an_admin_logs_in_by_key_and_becomes_root(host):
    done = ssh(host, "ada", "sudo -n id -un")
    assert (done.returncode, done.stdout.strip()) == (0, "root"), done.stderr


def test_root_is_refused_even_with_a_key_in_place(host):
    host.check_output("install -D -m 0600 /home/ada/.ssh/authorized_keys /root/.ssh/authorized_keys")
    done = ssh(host, "root", "true")
    assert done.returncode == 255 and "Permission denied (publickey)" in done.stderr


def test_no_password_is_even_asked_for(host):
    done = ssh(host, "ada", "true", "-o", "PubkeyAuthentication=no")
    assert done.returncode == 255 and done.stderr.strip().endswith("Permission denied (publickey).")


def test_a_person_who_left_has_no_account(host):
    assert not host.user("eve").exists


@pytest.mark.parametrize(
    ("name", "address"), [("api1", "192.0.2.21"), ("api1.arches.example", "192.0.2.21"), ("postgres", "127.0.0.1")]
)
def test_names_resolve(host, name, address):
    assert host.check_output("getent ahostsv4 %s", name).split()[0] == address


def test_the_journal_is_on_disk_and_bounded(host):
    header = host.check_output("journalctl --header --no-pager")
    assert "/var/log/journal/" in header and "/run/log/journal/" not in header
    said = host.check_output("journalctl --no-pager -b -u systemd-journald -g 'System Journal'")
    assert "max 64M" in said.splitlines()[-1]


def test_kernel_settings_hold(host):
    assert host.sysctl("net.core.somaxconn") == 5000


def test_nothing_updates_itself(host):
    assert 'Unattended-Upgrade "0";' in host.check_output("apt-config dump APT::Periodic::Unattended-Upgrade")


def test_nothing_is_owed(host):
    assert not host.file("/var/lib/arches/pending/base").exists
