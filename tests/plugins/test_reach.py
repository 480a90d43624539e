"""What `make open`, `silence`, `logs` and `trace` know of an environment: the same as Ansible, without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.plugins import PROJECT, load_script

reach = load_script("reach.py")
SSH = ("-o", "ConnectTimeout=5")


@pytest.mark.parametrize("environment", ["local", "staging"])
def test_the_files_say_what_ansible_says(environment: str) -> None:
    lister = Path(sys.executable).parent / "ansible-inventory"
    line = [lister, "-i", f"inventories/{environment}", "--list"]
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60)
    truth, known = json.loads(done.stdout), reach.read(PROJECT / "inventories" / environment)
    assert {name: group for name, group in known.items() if name != "_meta"} == {
        name: {"hosts": truth[name]["hosts"]} for name in ("edge", "api", "data", "ops")
    }
    assert known["_meta"]["hostvars"]
    for host, variables in known["_meta"]["hostvars"].items():
        for name in ("address", "services", "domain", "machine_provider", "vendor_repositories", "sizes"):
            assert variables[name] == truth["_meta"]["hostvars"][host][name], (host, name)


def test_hosts_that_were_added_are_known_as_ansible_knows_them(tmp_path: Path) -> None:
    copy = tmp_path / "inventories"
    shutil.copytree(PROJECT / "inventories", copy, ignore=shutil.ignore_patterns(".state", "scaled.yml"))
    inventory = copy / "local"
    added = {"api4": {"address": "10.88.10.24", "memory_mb": 2048, "cpus": 2}}
    (inventory / "scaled.yml").write_text(json.dumps({"all": {"children": {"api": {"hosts": added}}}}))
    lister = Path(sys.executable).parent / "ansible-inventory"
    line = [lister, "-i", inventory, "--list"]
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60)
    truth, known = json.loads(done.stdout), reach.read(inventory)
    assert known["api"]["hosts"] == truth["api"]["hosts"] == ["api1", "api2", "api3", "api4"]
    assert known["_meta"]["hostvars"]["api4"]["address"] == "10.88.10.24"


def test_a_local_machine_is_reached_by_the_file_that_it_comes_with() -> None:
    inventory = PROJECT / "inventories/local"
    host, variables = reach.first(reach.read(inventory), "prometheus", "Prometheus")
    assert reach.ssh(inventory, host, variables, *SSH) == ["ssh", "-F", f"{inventory}/.state/ssh/config", *SSH, "ops1"]


def test_any_other_host_is_reached_as_ops_at_its_address() -> None:
    inventory = PROJECT / "inventories/staging"
    host, variables = reach.first(reach.read(inventory), "prometheus", "Prometheus")
    assert reach.ssh(inventory, host, variables, *SSH) == ["ssh", "-l", "ops", *SSH, variables["address"]]


def test_the_key_that_access_has_written_is_used(tmp_path: Path) -> None:
    key = tmp_path / ".state/ssh/id_ed25519"
    key.parent.mkdir(parents=True)
    key.touch()
    own = ["-i", str(key), "-o", f"UserKnownHostsFile={tmp_path}/.state/ssh/known_hosts"]
    variables = {"machine_provider": "none", "address": "192.0.2.1"}
    assert reach.ssh(tmp_path, "api1", variables, *SSH) == ["ssh", "-l", "ops", *own, *SSH, "192.0.2.1"]


def test_an_environment_without_the_host_says_so() -> None:
    listed = reach.read(PROJECT / "inventories/dev")
    with pytest.raises(reach.Refused, match=r"nobody runs `loki` in dev .*, so there is no Loki"):
        reach.first(listed, "loki", "Loki")


def test_a_directory_that_is_no_inventory_is_named(tmp_path: Path) -> None:
    with pytest.raises(reach.Refused, match=rf"{tmp_path}/hosts.yml cannot be read .*such as inventories/local"):
        reach.read(tmp_path)
