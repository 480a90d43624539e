"""The service map says every port, the wiring hands it on, and both spell the names right."""

import re
from collections.abc import Iterator
from typing import Any

from rules.repository import Repository, Rule, lines_of, names_in_value

MAP = "inventories/shared/services.yml"
SCHEMA = "inventories/schema.yml"
WIRING = "inventories/shared/wiring/*.yml"
EXAMPLES = "inventories/*/group_vars/all/vault.yml.example"

# What Ansible gives to the wiring, besides the inventory.
MAGIC = {"groups", "group_names", "hostvars", "inventory_dir", "inventory_hostname", "item", "lookup", "omit", "query"}
# What a play finds out: ansible/release.yml.
MAGIC |= {"fleet_release"}

# host:port, "port 5432", "port = 5432", "listen 443".
PORT_LITERAL = r"(?<![\d:])[\w\]]:(\d{3,5})\b(?!:)|\b(?:port|listen)\b[\s=:]{1,4}(\d{2,5})\b"


def map_ports(repository: Repository) -> set[int]:
    """All ports of the service map."""
    return {entry["port"] for entry in repository.data(MAP).get("services", {}).values()}


def templates_take_ports_as_inputs(repository: Repository) -> Iterator[str]:
    """A template has no port of its own."""
    for file in repository.match("roles/*/templates/*", "nginx/*.j2"):
        for number, match in lines_of(repository.text(file), PORT_LITERAL):
            yield f"{file}:{number}: `{match[0]}` writes a port; take it as an input, the wiring sets it from the map"


def default_ports_are_in_the_map(repository: Repository) -> Iterator[str]:
    """A role's default port is one that the map knows: nothing listens where nobody looks."""
    ports = map_ports(repository)
    for file in repository.match("roles/*/defaults/main.yml", "roles/*/vars/*.yml"):
        for name, value in repository.data(file).items():
            if re.search(r"_port$", name) and isinstance(value, int) and value not in ports:
                yield f"{file}: `{name}` is {value}, which {MAP} does not list; add the service there"


def wiring_repeats_no_port(repository: Repository) -> Iterator[str]:
    """The wiring takes ports from the map."""
    ports = map_ports(repository)
    for file in repository.match(WIRING):
        for number, match in lines_of(repository.text(file), r"(?<![\w.])(\d{2,5})(?![\w.])"):
            if int(match[1]) in ports:
                yield f"{file}:{number}: repeats port {match[1]}; write `services.<name>.port`"


def wiring_fits_the_roles(repository: Repository) -> Iterator[str]:
    """A wiring file sets inputs of its own role only, and everything that the role requires."""
    given = {role: given_in_plays(repository, role) for role in repository.roles}
    for file in repository.match(WIRING):
        role = file.rpartition("/")[2].removesuffix(".yml")
        if role not in repository.roles:
            yield f"{file}: there is no role {role}"
            continue
        # `_<role>_x` is a working value of the wiring itself.
        names = {name for name in repository.data(file) if not name.startswith(f"_{role}_")}
        for name in names - repository.options(role).keys():
            yield f"{file}: `{name}` is no input of the role {role} (roles/{role}/meta/argument_specs.yml)"
    for role in sorted({role for _, play in repository.plays() for role in roles_of(play)} & set(repository.roles)):
        wired = repository.data(f"inventories/shared/wiring/{role}.yml").keys() | given[role]
        for name, option in repository.options(role).items():
            if option.get("required") and name not in wired:
                yield f"inventories/shared/wiring/{role}.yml: the role {role} requires `{name}`; set it"


def roles_of(play: Any) -> dict[str, set[str]]:
    """Roles that a play applies, each with the names of the variables that the play gives to it."""
    listed = [role if isinstance(role, dict) else {"role": role} for role in play.get("roles") or []]
    given = set(play.get("vars") or {})
    return {role["role"]: given | set(role.get("vars") or {}) | role.keys() for role in listed}


def given_in_plays(repository: Repository, role: str) -> set[str]:
    """Names of the variables that plays hand to a role."""
    return {name for _, play in repository.plays() for name in roles_of(play).get(role, set())}


def wiring_reads_known_names(repository: Repository) -> Iterator[str]:
    """A misspelled name in the wiring would only fail on the host that needs it."""
    schema = repository.data(SCHEMA)
    known = MAGIC | set(schema.get("host", {})) | set(schema.get("environment", {}))
    known |= {name for file in repository.match(EXAMPLES) for name in repository.data(file)}
    known |= {name for file in repository.match(WIRING) for name in repository.data(file)}
    for file in repository.match(WIRING):
        for name, value in repository.data(file).items():
            for read in sorted(names_in_value(value) - known):
                yield f"{file}: `{name}` reads `{read}`, which no inventory defines"


def service_references_exist(repository: Repository) -> Iterator[str]:
    """`services.x` names an entry of the map."""
    services = repository.data(MAP).get("services", {})
    files = repository.match("inventories/*.yml", "ansible/*", "site.yml", "tests/fleet/*.py")
    for file in files:
        for number, match in lines_of(repository.text(file), r"\bservices(?:\.|\[['\"])(\w+)"):
            if services and match[1] not in {*services, "yml", "items", "values", "keys", "get"}:
                yield f"{file}:{number}: `services.{match[1]}` is not in {MAP}"


def secrets_have_the_same_names(repository: Repository) -> Iterator[str]:
    """Every environment needs the same secrets."""
    files = [*repository.match(EXAMPLES), *repository.match("inventories/local/group_vars/all/vault.yml")]
    # What is only there while secrets are replaced has another name.
    names = {file: {name for name in repository.data(file) if name.startswith("vault_")} for file in files}
    for file in files:
        for name in sorted(set().union(*names.values()) - names[file]):
            yield f"{file}: the secret `{name}` of another environment is missing"


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    found = list(rule(tree(files)))
    assert any(says in finding for finding in found), found


SERVICES = {MAP: "services: {web: {hosts: edge, port: 443, from: [world], tls: public}}"}
X_SPEC = {"roles/x/meta/argument_specs.yml": "argument_specs: {main: {options: {x_port: {required: true}}}}"}

BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (templates_take_ports_as_inputs, {"roles/x/templates/a.j2": "bind 127.0.0.1:5000"}, "a.j2:1: `1:5000` writes"),
    (templates_take_ports_as_inputs, {"roles/x/templates/a.j2": "\nport = 6379"}, "a.j2:2: `port = 6379`"),
    (default_ports_are_in_the_map, {**SERVICES, "roles/x/defaults/main.yml": "x_port: 444"}, "`x_port` is 444"),
    (wiring_repeats_no_port, {**SERVICES, "inventories/shared/wiring/x.yml": "x_port: 443"}, "repeats port 443"),
    (wiring_fits_the_roles, {"inventories/shared/wiring/y.yml": "y_a: 1"}, "no role y"),
    (wiring_fits_the_roles, {**X_SPEC, "inventories/shared/wiring/x.yml": "x_prot: 1"}, "`x_prot` is no input"),
    (wiring_fits_the_roles, {**X_SPEC, "site.yml": "- {hosts: all, roles: [x]}"}, "the role x requires `x_port`"),
    (wiring_reads_known_names, {"inventories/shared/wiring/x.yml": "x_a: '{{ sizess.a }}'"}, "reads `sizess`"),
    (service_references_exist, {**SERVICES, "ansible/a.yml": "a: '{{ services.wbe.port }}'"}, "`services.wbe` is not"),
    (
        secrets_have_the_same_names,
        {
            "inventories/prod/group_vars/all/vault.yml.example": "{vault_a: CHANGE-ME, vault_b: CHANGE-ME}",
            "inventories/staging/group_vars/all/vault.yml.example": "{vault_a: CHANGE-ME}",
        },
        "staging/group_vars/all/vault.yml.example: the secret `vault_b`",
    ),
]
