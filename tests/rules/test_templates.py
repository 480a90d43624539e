"""Every template of every role renders, for every host of every environment, with what the wiring gives it."""

import configparser
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.template import Templar

from rules.environments import (
    ENVIRONMENTS,
    EXAMPLE,
    ROOT,
    Environment,
    applied_roles,
    copy_inventories,
    dummy,
    load_plugin,
)
from rules.repository import Repository

# What a role learns from the running host, in the shape in which its own module says it.
LIVE: dict[str, dict[str, Any]] = {
    "redis": {"__redis_leader": {"leads": False, "leader": {"name": "data1", "address": "192.0.2.31"}}},
}


@pytest.fixture(scope="session")
def inventories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of all inventories with dummy secrets."""
    return copy_inventories(tmp_path_factory.mktemp("render"))


@pytest.fixture(scope="session")
def action() -> ModuleType:
    """The action template_tree: templates are rendered here exactly as in a run."""
    return load_plugin("action", "template_tree")


def rendered(
    action: ModuleType, environment: Environment, role: str, host: str, given: dict[str, Any], files: list[str]
) -> Iterator[tuple[str, str]]:
    """(template, content) of a role's templates on a host; a failure comes out as content that begins with !."""
    base = str(ROOT / "roles" / role)
    # Where a lookup in a role looks for files.
    variables = environment.variables(role, host, given) | LIVE.get(role, {}) | {"ansible_search_path": [base]}
    templar = Templar(loader=environment.loader, variables=variables)
    for file in files:
        try:
            search = [os.path.join(base, "templates"), base]
            yield file, action.render(templar, environment.loader, str(ROOT / file), file, variables, search)
        except AnsibleError as error:
            yield file, f"!{error}"


def faults(file: str, content: str) -> Iterator[str]:
    """What is wrong with a rendered file, as far as its name tells its language."""
    if content.startswith("!"):
        yield content[1:]
        return
    if "{{" in content or "{%" in content or re.search(r"\bAnsibleUndefined\b|\bUndefined\b", content):
        yield "something in it was not rendered"
    name = file.removesuffix(".j2")
    try:
        if name.endswith((".yml", ".yaml")):
            yaml.safe_load(content)
        elif name.endswith(".json"):
            json.loads(content)
        elif re.search(r"/systemd/.*\.(service|socket|target|timer|slice|conf)$", name):
            parser = configparser.RawConfigParser(strict=False, allow_no_value=False, delimiters=("=",))
            parser.read_string(re.sub(r"^\s+", "", content, flags=re.MULTILINE))
    except (yaml.YAMLError, ValueError, configparser.Error) as error:
        yield f"it is not what its name says: {error}"


def secret_files(repository: Repository, role: str) -> dict[str, dict[str, Any]]:
    """Settings of every file that template_tree writes for a role, by template."""
    return {
        f"roles/{role}/{task.arguments.get('src', 'templates')}/{path}.j2": entry or {}
        for task in repository.role_tasks(role)
        if task.module == "template_tree" and isinstance(task.arguments.get("files"), dict)
        for path, entry in task.arguments["files"].items()
        if path != "__lines__"
    }


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_template_renders(name: str, repository: Repository, inventories: Path, action: ModuleType) -> None:
    environment = Environment(inventories / name)
    secrets = {secret: dummy(secret) for secret in yaml.safe_load((ROOT / EXAMPLE).read_text())}
    found: dict[str, None] = {}
    count = 0
    for role, pattern, given in applied_roles(repository):
        files = [f for f in repository.match(f"roles/{role}/templates/*.j2") if not Path(f).name.startswith("_")]
        settings = secret_files(repository, role)
        for host in environment.hosts(pattern):
            for file, content in rendered(action, environment, role, host, given, files):
                count += 1
                for fault in faults(file, content):
                    found[f"{file} on {host}: {fault}"] = None
                for secret, value in secrets.items():
                    if value in content and not (settings.get(file) or {}).get("secret"):
                        found[f"{file}: holds the secret {secret}; write `secret: true` so that no diff shows it"] = (
                            None
                        )
    assert not found, "\n" + "\n".join(found)
    assert count, "no template was rendered"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.j2", "!`x` is undefined", "`x` is undefined"),
        ("a.j2", "left {{ over }}", "was not rendered"),
        ("a.yml.j2", "a: [", "not what its name says"),
        ("a.json.j2", "{a: 1}", "not what its name says"),
        ("etc/systemd/system/a.service.j2", "[Unit]\nnonsense\n", "not what its name says"),
    ],
)
def test_a_bad_rendering_is_seen(file: str, content: str, says: str) -> None:
    assert says in " ".join(faults(file, content))


def test_an_undefined_variable_fails(tmp_path: Path, action: ModuleType, inventories: Path) -> None:
    template = tmp_path / "a.j2"
    template.write_text("{{ nobody_defines_this }}")
    environment = Environment(inventories / "local")
    templar = Templar(loader=environment.loader, variables={})
    with pytest.raises(AnsibleError, match="nobody_defines_this"):
        action.render(templar, environment.loader, str(template), "a.j2", {}, [str(tmp_path)])
