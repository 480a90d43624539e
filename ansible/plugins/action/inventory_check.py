"""Action ``inventory_check``: hold the inventory against its rules, on the controller, before any host is touched.

It is an action and not a module because only the controller can say in which file a variable stands. It takes no
arguments, reaches no host, changes nothing, and reports every error at once. The rules are in ``inventory_rules``.
"""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.vars.hostvars import HostVars

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from inventory_rules import Definition, Inventory, SecretState, Unresolved, findings, secret_state

REPOSITORY = Path(__file__).parents[3]
SCHEMA = REPOSITORY / "inventories" / "schema.yml"
EXAMPLE = "group_vars/all/vault.yml.example"
SPECS = "roles/*/meta/argument_specs.yml"


class ActionModule(ActionBase):
    """See the module's text."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS: frozenset[str] = frozenset()

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail with every finding, or pass in silence.

        :raises AnsibleError: if a file of the inventory cannot be read.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hostvars, groups = variables["hostvars"], variables["groups"]
        roots = sorted({Path(hostvars[host]["inventory_dir"]) for host in hostvars})
        found = [text for root in roots for text in findings(collect(root, self._loader, hostvars, groups))]
        if found:
            count = "1 error" if len(found) == 1 else f"{len(found)} errors"
            text = "\n".join(f"- {finding}" for finding in found)
            result |= {"failed": True, "msg": f"The inventory has {count}; no host was touched.\n{text}"}
        return result | {"changed": False}


def collect(root: Path, loader: DataLoader, hostvars: HostVars, groups: Mapping[str, Sequence[str]]) -> Inventory:
    """Everything that the rules look at; secrets are reduced to their state here.

    :param root: the inventory's directory.
    :raises AnsibleError: if a file cannot be read.
    """
    schema = loader.load_from_file(str(SCHEMA), unsafe=True)
    names = [*schema["host"], *schema["environment"]]
    variables = {host: hostvars[host] for host in hostvars if host != "localhost"}
    hosts = {host: {name: resolve(own, name) for name in names if name in own} for host, own in variables.items()}
    # Locally a secret is drawn at its first use: reading it here would be one.
    drawn = any(host.get("machine_provider") == "nspawn" for host in hosts.values())
    trees = {shown(file): loader.load_from_file(str(file), unsafe=True) or {} for file in sorted(root.glob("*.yml"))}
    definitions = [Definition(file, name, value, host) for file in trees for host, name, value in in_tree(trees[file])]
    strays: list[tuple[str, str]] = []
    for folder, owners in (("group_vars", set(groups)), ("host_vars", set(hosts))):
        for file in variable_files(root / folder):
            owner = file.relative_to(root / folder).parts[0].removesuffix(file.suffix)
            strays += [] if owner in owners else [(shown(file), owner)]
            content, host = loader.load_from_file(str(file), unsafe=True) or {}, owner if folder == "host_vars" else ""
            definitions += [Definition(shown(file), name, value, host) for name, value in content.items()]
    return Inventory(
        root=shown(root),
        definitions=definitions,
        tree_keys=[entry for file, tree in trees.items() for entry in tree_keys(file, tree)],
        groups=groups,
        hosts=hosts,
        schema=schema,
        role_options={spec.parts[-3]: role_options(spec) for spec in sorted(REPOSITORY.glob(SPECS))},
        secrets=secret_states(next(iter(variables.values()), {}), drawn),
        secret_examples=secret_examples(loader, root),
        strays=strays,
    )


def variable_files(folder: Path) -> Iterator[Path]:
    """Files below group_vars or host_vars that Ansible reads, links followed."""
    for directory, _, names in sorted(folder.walk(follow_symlinks=True)):
        yield from (directory / name for name in sorted(names) if name.endswith((".yml", ".yaml")))


def in_tree(group: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(host, name, value) of every variable in a tree of groups; the host is empty for a group's variable."""
    for content in filter(None, group.values()):
        yield from (("", name, value) for name, value in (content.get("vars") or {}).items())
        for host, variables in (content.get("hosts") or {}).items():
            yield from ((host, name, value) for name, value in (variables or {}).items())
        yield from in_tree(content.get("children") or {})


def tree_keys(file: str, group: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(file, group, key) of every key in a tree of groups."""
    for name, content in group.items():
        yield from ((file, name, key) for key in content or {})
        yield from tree_keys(file, (content or {}).get("children") or {})


def secret_states(variables: Mapping[str, Any], drawn: bool) -> dict[str, SecretState]:
    """State of every secret among a host's variables; one that is drawn at its first use is good unseen."""
    names = [name for name in variables if name.startswith("vault_")]
    return {name: "good" if drawn else secret_state(resolve(variables, name)) for name in names}


def secret_examples(loader: DataLoader, root: Path) -> list[str]:
    """Names of all secrets; local environments draw theirs and have no example, but the names are the same."""
    examples = sorted(root.glob(EXAMPLE)) or sorted((REPOSITORY / "inventories").glob(f"*/{EXAMPLE}"))
    return list(dict.fromkeys(name for example in examples for name in loader.load_from_file(str(example))))


@functools.cache
def role_options(spec: Path) -> frozenset[str]:
    """Names of the inputs of a role, from its argument specs."""
    specs = DataLoader().load_from_file(str(spec))["argument_specs"]
    return frozenset(name for entry in specs.values() for name in entry.get("options") or {})


def resolve(variables: Mapping[str, Any], name: str) -> Any:
    """A variable's rendered value, or why there is none."""
    try:
        return variables[name]
    except AnsibleError as error:
        return Unresolved(error.message.splitlines()[0])


def shown(file: Path) -> str:
    """A path as a person would write it: from `inventories/` on, links resolved."""
    parts = file.resolve().parts
    return "/".join(parts[parts.index("inventories") :]) if "inventories" in parts else str(file)
