"""Roles are strangers, say what they take, and are small."""

import ast
import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from rules.repository import Repository, Rule, Task, flat, names_in, names_in_value

# What Ansible gives to every role, besides its inputs.
MAGIC = {
    "ansible_check_mode", "ansible_managed", "dict", "inventory_hostname", "item", "joiner", "lookup", "namespace",
    "now", "omit", "query", "range", "role_name", "role_path", "undef",
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "path": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "list": (list,),
    "dict": (dict,), "raw": (object,),
}  # fmt: skip
SECRET = re.compile(r"(password|secret|token|private_key|ca_key|passphrase)s?$")
FORBIDDEN_MODULES = {
    "lineinfile", "blockinfile", "replace", "apt_key", "apt_repository", "raw", "script", "setup", "gather_facts",
}  # fmt: skip
LONGEST = 80


def role_names_are_no_prefixes(repository: Repository) -> Iterator[str]:
    """`redis_exporter_port` must not look like an input of `redis`."""
    for one, other in permutations(repository.roles, 2):
        if other.startswith(one):
            yield f"roles/{other}: the name begins with that of roles/{one}; rename one of them"


def roles_are_strangers(repository: Repository) -> Iterator[str]:
    """A role reads its own variables only; playbooks and the wiring hand values over."""
    for role in repository.roles:
        local = {name for task in tasks_of(repository, role) for name in own_names(task)}
        for place, names in reads_of(repository, role):
            for name in sorted(names - MAGIC - local):
                if not re.match(rf"_{{0,2}}{role}_", name):
                    yield f"{place}: reads `{name}`, no variable of the role {role}; take it as an input `{role}_...`"


def tasks_of(repository: Repository, role: str) -> Iterator[Task]:
    """Tasks and handlers of a role."""
    yield from repository.role_tasks(role)
    yield from repository.role_tasks(role, "handlers")


def own_names(task: Task) -> set[str]:
    """Variables that a task defines for itself."""
    control = task.data.get("loop_control") or {}
    return {*(task.data.get("vars") or {}), *(control[key] for key in ("loop_var", "index_var") if key in control)}


def reads_of(repository: Repository, role: str) -> Iterator[tuple[str, set[str]]]:
    """Each place of a role with the variables that it reads."""
    for task in tasks_of(repository, role):
        yield task.place, names_in_value(task.data)
    for file in repository.match(f"roles/{role}/defaults/*.yml", f"roles/{role}/vars/*.yml"):
        yield file, names_in_value(repository.data(file))
    for file in repository.match(f"roles/{role}/templates/*"):
        yield file, names_in(repository.text(file))


def specs_equal_defaults(repository: Repository) -> Iterator[str]:
    """One truth about every input: same keys, same types, same default values."""
    for role in repository.roles:
        file = f"roles/{role}/meta/argument_specs.yml"
        options, defaults = repository.options(role), repository.data(f"roles/{role}/defaults/main.yml")
        if f"{file}" not in repository.files:
            yield f"{file}: missing; every role says what it takes"
        for name in defaults.keys() - options.keys():
            yield f"{file}: `{name}` of defaults/main.yml is not described; add it"
        for name, option in options.items():
            yield from wrong_option(file, role, name, option, defaults)


def wrong_option(file: str, role: str, name: str, option: dict[str, Any], defaults: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one input."""
    if not name.startswith(f"{role}_"):
        yield f"{file}: `{name}` does not begin with `{role}_`"
    if not option.get("description") or option.get("type") not in TYPES:
        yield f"{file}: `{name}` needs a description and a type ({', '.join(TYPES)})"
    elif name not in defaults:
        if "default" in option or not option.get("required"):
            yield f"{file}: `{name}` is not in defaults/main.yml; add it, or write `required: true` and no default"
    elif (
        "default" not in option
        or option["default"] != defaults[name]
        or type(option["default"]) is not type(defaults[name])
    ):
        yield f"{file}: `{name}` is {option.get('default')!r} here and {defaults[name]!r} in defaults/main.yml"
    elif option.get("required"):
        yield f"{file}: `{name}` is required and has a default; choose one"
    elif "{{" not in str(defaults[name]) and not is_typed(defaults[name], option["type"]):
        yield f"{file}: `{name}` is of type {option['type']}, but its default is {defaults[name]!r}"


def is_typed(value: Any, kind: str) -> bool:
    """Whether a default is of the type that its spec names; true is no number."""
    return isinstance(value, TYPES[kind]) and (kind == "bool" or kind == "raw" or not isinstance(value, bool))


def secrets_have_no_default(repository: Repository) -> Iterator[str]:
    """A password that somebody forgot must stop the run, not become a known one."""
    for role in repository.roles:
        file = f"roles/{role}/defaults/main.yml"
        for name, value in repository.data(file).items():
            if SECRET.search(name) and value != []:
                yield f"{file}: the secret `{name}` has a default; remove it and write `required: true` in its spec"


def handlers_are_notified(repository: Repository) -> Iterator[str]:
    """Each notification reaches a handler, each handler is reached."""
    groups = [(list(repository.role_tasks(r)), list(repository.role_tasks(r, "handlers"))) for r in repository.roles]
    for file, play in repository.plays():
        tasks = [task for kind in ("pre_tasks", "tasks", "post_tasks") for task in flat(file, play.get(kind) or [])]
        groups.append((tasks, list(flat(file, play.get("handlers") or []))))
    for tasks, handlers in groups:
        notified = {name: task for task in [*tasks, *handlers] for name in as_list(task.data.get("notify"))}
        known = {name for h in handlers for name in [h.data.get("name"), *as_list(h.data.get("listen"))]}
        for name in notified.keys() - known:
            yield f"{notified[name].place}: notifies `{name}`, which no handler of the role listens to"
        for handler in handlers:
            if not notified.keys() & {handler.data.get("name"), *as_list(handler.data.get("listen"))}:
                yield f"{handler.place}: nothing notifies the handler `{handler.data.get('name')}`; remove it"


def as_list(value: Any) -> list[Any]:
    """One or many, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def task_files_are_short(repository: Repository) -> Iterator[str]:
    """A file that is read at one glance."""
    for file in repository.match(
        "roles/*/tasks/*.yml", "roles/*/handlers/*.yml", "ansible/tasks/*.yml", "ansible/recover/*.yml"
    ):
        length = len(repository.text(file).splitlines())
        if length > LONGEST:
            yield f"{file}: {length} lines; split it, {LONGEST} at most"


def failures_are_not_hidden(repository: Repository) -> Iterator[str]:
    """No step may pretend to have worked, no file is edited line by line."""
    for task in repository.all_tasks():
        # To ask which hosts answer is what `ping` is for.
        unreachable = "ignore_unreachable" in task.data and task.module != "ping"
        if "ignore_errors" in task.data or unreachable:
            yield f"{task.place}: ignore_errors hides a failure; say what may fail with failed_when"
        if task.data.get("failed_when") is False:
            yield f"{task.place}: `failed_when: false` hides every failure; name the one that is expected"
        waits = task.module == "pause" and "prompt" not in (task.arguments or {})
        if task.module in FORBIDDEN_MODULES or waits:
            yield f"{task.place}: {task.module} is not used here; own whole files, use a module, wait for a condition"
    for file in repository.match("roles/*", "ansible/*", "*.sh", ".ci/*", "Makefile", ".github/*"):
        for number, line in enumerate(repository.text(file).splitlines(), 1):
            if re.search(r"\|\|\s*(true|:)(\s|$|[\"'])", line):
                yield f"{file}:{number}: `|| true` hides a failure"


def commands_say_why(repository: Repository) -> Iterator[str]:
    """A command has a reason (a comment) and says when it changed something."""
    handlers = {task.place for role in repository.roles for task in repository.role_tasks(role, "handlers")}
    for task in repository.all_tasks():
        if task.module not in ("command", "shell"):
            continue
        arguments = task.arguments if isinstance(task.arguments, dict) else {}
        says_when = "changed_when" in task.data or {"creates", "removes"} & arguments.keys() or task.place in handlers
        if not says_when:
            yield f"{task.place}: {task.module} without changed_when or creates"
        lines = repository.text(task.file).splitlines()
        before = task.line - 2
        while before >= 0 and lines[before].strip() == "":
            before -= 1
        if "#" not in "\n".join([lines[max(before, 0)], *lines[task.line - 1 : task.last_line]]):
            yield f"{task.place}: {task.module} without a comment that says why no module does it"


def roles_are_complete(repository: Repository) -> Iterator[str]:
    """A role has its tests and its page."""
    for role in repository.roles:
        for file in ("tasks/main.yml", "meta/argument_specs.yml", "README.md", "molecule/default/molecule.yml"):
            if f"roles/{role}/{file}" not in repository.files:
                yield f"roles/{role}/{file}: missing"
        tests = repository.match(f"roles/{role}/molecule/default/tests/test_*.py")
        if not any(asserting(repository.text(file)) for file in tests):
            yield f"roles/{role}/molecule/default/tests: no test that asserts anything; Molecule passes without one"


def asserting(text: str) -> list[str]:
    """Names of the test functions in a Python file that assert something."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        function.name
        for function in functions
        if function.name.startswith("test_")
        and any(isinstance(node, ast.Assert | ast.With | ast.Call) for node in ast.walk(function))
    ]


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    assert any(says in finding for finding in rule(tree(files))), list(rule(tree(files)))


SPEC = "argument_specs: {main: {options: {x_port: {type: int, description: Port, %s}}}}"

BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (role_names_are_no_prefixes, {"roles/web/a.yml": "", "roles/web_exporter/a.yml": ""}, "begins with that"),
    (roles_are_strangers, {"roles/x/tasks/main.yml": "- debug: {msg: '{{ groups.data }}'}"}, "reads `groups`"),
    (roles_are_strangers, {"roles/x/tasks/main.yml": "- debug:\n  when: hostvars.a.b"}, "main.yml:1: reads `hostvars`"),
    (roles_are_strangers, {"roles/x/tasks/main.yml": "- block: []\n  when: y_port > 1"}, "reads `y_port`"),
    (roles_are_strangers, {"roles/x/templates/etc/x.j2": "{% for s in services %}{% endfor %}"}, "reads `services`"),
    (roles_are_strangers, {"roles/x/defaults/main.yml": "x_port: '{{ other }}'"}, "reads `other`"),
    (specs_equal_defaults, {"roles/x/defaults/main.yml": "x_port: 1"}, "`x_port` of defaults/main.yml is not"),
    (specs_equal_defaults, {"roles/x/tasks/main.yml": ""}, "argument_specs.yml: missing"),
    (
        specs_equal_defaults,
        {"roles/x/defaults/main.yml": "x_port: 1", "roles/x/meta/argument_specs.yml": SPEC % "default: 2"},
        "`x_port` is 2 here and 1 in defaults",
    ),
    (
        specs_equal_defaults,
        {"roles/x/defaults/main.yml": "x_port: '1'", "roles/x/meta/argument_specs.yml": SPEC % "default: '1'"},
        "of type int, but its default is '1'",
    ),
    (specs_equal_defaults, {"roles/x/meta/argument_specs.yml": SPEC % "default: 2"}, "not in defaults/main.yml"),
    (secrets_have_no_default, {"roles/x/defaults/main.yml": "x_admin_password: ''"}, "`x_admin_password` has"),
    (handlers_are_notified, {"roles/x/tasks/main.yml": "- debug:\n  notify: [Y]"}, "notifies `Y`"),
    (handlers_are_notified, {"roles/x/handlers/main.yml": "- name: Y\n  debug:"}, "nothing notifies the handler `Y`"),
    (task_files_are_short, {"roles/x/tasks/main.yml": "#\n" * 81}, "81 lines"),
    (failures_are_not_hidden, {"roles/x/tasks/main.yml": "- debug:\n  ignore_errors: true"}, "ignore_errors hides"),
    (failures_are_not_hidden, {"ansible/tasks/a.yml": "- debug:\n  ignore_unreachable: true"}, "ignore_errors hides"),
    (failures_are_not_hidden, {"roles/x/tasks/main.yml": "- debug:\n  failed_when: false"}, "hides every failure"),
    (failures_are_not_hidden, {"roles/x/tasks/main.yml": "- ansible.builtin.lineinfile: {}"}, "lineinfile is not used"),
    (failures_are_not_hidden, {"ansible/bin/x": "false || true"}, "ansible/bin/x:1: `|| true`"),
    (commands_say_why, {"roles/x/tasks/main.yml": "- command: {cmd: 'true'}\n  changed_when: false"}, "without a comm"),
    (commands_say_why, {"roles/x/tasks/main.yml": "# why\n- command: {cmd: 'true'}"}, "without changed_when"),
    (roles_are_complete, {"roles/x/tasks/main.yml": ""}, "roles/x/README.md: missing"),
    (roles_are_complete, {"roles/x/molecule/default/tests/test_x.py": "def test_x(): pass"}, "no test that asserts"),
]  # fmt: skip
