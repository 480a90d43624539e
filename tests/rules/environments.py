"""Copies of the inventories with dummy secrets, and every role's variables on every host, without a host."""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from rules.repository import Repository

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))

from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import init_plugin_loader  # noqa: E402
from ansible.template import trust_as_template  # noqa: E402
from ansible.vars.hostvars import HostVars  # noqa: E402
from ansible.vars.manager import VariableManager  # noqa: E402

ENVIRONMENTS = ("local", "dev", "staging", "prod")
EXAMPLE = "inventories/prod/group_vars/all/vault.yml.example"


def dummy(name: str) -> str:
    """A recognisable value for a secret."""
    return "dummy" + hashlib.sha256(name.encode()).hexdigest()[:27]


def copy_inventories(target: Path) -> Path:
    """Copy all inventories below a folder, with a dummy vault and CA each; returns the copy's `inventories`."""
    copy = target / "inventories"
    shutil.copytree(ROOT / "inventories", copy, symlinks=True, ignore=shutil.ignore_patterns(".state"))
    secrets = {name: dummy(name) for name in yaml.safe_load((ROOT / EXAMPLE).read_text())}
    for environment in ENVIRONMENTS:
        vault = copy / environment / "group_vars" / "all" / "vault.yml"
        vault.unlink(missing_ok=True)
        vault.write_text(yaml.safe_dump(secrets))
        for certificate in (copy / environment / ".state" / "ca.crt", copy / environment / "ca.crt"):
            certificate.parent.mkdir(exist_ok=True)
            certificate.write_text("dummy certificate\n")
            certificate.with_name("release.pub").write_text("dummy public key\n")
        packages = copy / environment / ".state" / "packages"
        packages.mkdir()
        (packages / "apt.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\ndummy\n")
        (packages / "apt.json").write_text('{"version": "0"}\n')
    return copy


@functools.cache
def load_plugin(kind: str, name: str) -> ModuleType:
    """Import a plugin of ours from its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "ansible" / "plugins" / kind / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def validate(inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the real validation play on an inventory."""
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "ansible/validate.yml", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip


class Environment:
    """One inventory, loaded by Ansible itself.

    :param inventory: its directory.
    """

    def __init__(self, inventory: Path) -> None:
        _load_plugins()
        self.loader = DataLoader()
        self.loader.set_basedir(str(ROOT))
        self.inventory = InventoryManager(loader=self.loader, sources=[str(inventory)])
        self.manager = VariableManager(loader=self.loader, inventory=self.inventory)
        self._of_host: dict[str, dict[str, Any]] = {}
        self._of_file: dict[Path, dict[str, Any]] = {}
        self.hostvars = HostVars(self.inventory, self.manager, self.loader)

    def hosts(self, pattern: str) -> list[str]:
        """Hosts of a play's pattern."""
        return [host.name for host in self.inventory.get_hosts(pattern)]

    def variables(self, role: str, host: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a role sees on a host: defaults, inventory with wiring, its constants, what the play gives it."""
        if host not in self._of_host:
            self._of_host[host] = self.manager.get_vars(host=self.inventory.get_host(host))
        return {
            **self._file(role, "defaults"),
            **self._of_host[host],
            **self._file(role, "vars"),
            **trusted(given),
        }

    def _file(self, role: str, kind: str) -> dict[str, Any]:
        file = ROOT / "roles" / role / kind / "main.yml"
        if file not in self._of_file:
            content = self.loader.load_from_file(str(file), trusted_as_template=True) if file.exists() else None
            self._of_file[file] = dict(content or {})
        return self._of_file[file]


@functools.cache
def _load_plugins() -> None:
    init_plugin_loader()


def trusted(value: Any) -> Any:
    """A nested value whose strings Ansible takes as templates."""
    if isinstance(value, Mapping):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def applied_roles(repository: Repository) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(role, hosts, variables given by the play) for every role of site.yml and what it imports."""
    for _, play in repository.plays():
        for role in play.get("roles") or []:
            entry = role if isinstance(role, dict) else {"role": role}
            own = {key: value for key, value in entry.items() if str(key).startswith(f"{entry['role']}_")}
            yield entry["role"], str(play["hosts"]), {**(play.get("vars") or {}), **(entry.get("vars") or {}), **own}
