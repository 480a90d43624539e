"""What the repository rules look at: files, YAML with line numbers, tasks and the expressions in them."""

import functools
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import jinja2
import jinja2.meta
import yaml

type Rule = Callable[["Repository"], Iterable[str]]

# Keys of a task that Ansible evaluates as bare expressions.
EXPRESSIONS = ("when", "changed_when", "failed_when", "until")
BLOCKS = ("block", "rescue", "always")
# Keys that a task may have besides its module.
TASK_KEYS = {
    "action", "any_errors_fatal", "args", "async", "become", "become_user", "changed_when", "check_mode", "delegate_to",
    "diff", "environment", "failed_when", "listen", "loop", "loop_control", "name", "no_log", "notify", "poll",
    "register", "retries", "run_once", "tags", "throttle", "timeout", "until", "vars", "when",
}  # fmt: skip


class LineLoader(yaml.CSafeLoader):
    """YAML with the first and last line of every mapping below `__lines__`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Like the original, and the lines, counted from 1."""
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=True)
        mapping["__lines__"] = (node.start_mark.line + 1, max(node.start_mark.line, node.end_mark.line - 1) + 1)
        return mapping


def without_lines(value: Any) -> Any:
    """The plain data, as Ansible sees it."""
    if isinstance(value, dict):
        return {key: without_lines(item) for key, item in value.items() if key != "__lines__"}
    return [without_lines(item) for item in value] if isinstance(value, list) else value


# Ansible's own tags hold no interest here.
LineLoader.add_multi_constructor("!", lambda loader, suffix, node: node.value)


@dataclass(frozen=True)
class Task:
    """One task or handler: where it stands, its keys, its module."""

    file: str
    line: int
    last_line: int
    data: Mapping[str, Any]

    @property
    def module(self) -> str:
        """Module or action, without its collection."""
        names = [key for key in self.data if key not in TASK_KEYS and key != "__lines__"]
        return names[0].rpartition(".")[2] if names else ""

    @property
    def arguments(self) -> Any:
        """What the module gets."""
        names = [key for key in self.data if key not in TASK_KEYS and key != "__lines__"]
        return self.data[names[0]] if names else None

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Repository:
    """A tree of files; paths are relative to its root, with `/`."""

    root: Path
    files: tuple[str, ...]

    @classmethod
    def of_git(cls, root: Path) -> Self:
        """Everything that git knows or would take: what is ignored is no part of the project."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return cls(root, tuple(sorted(name for name in listed.stdout.split("\0") if name and (root / name).is_file())))

    @classmethod
    def of_folder(cls, root: Path) -> Self:
        """Every file below a folder, for the rules' own tests."""
        return cls(root, tuple(sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())))

    def match(self, *patterns: str) -> list[str]:
        """Files whose path fits one of the patterns; `*` also crosses `/`."""
        return [name for name in self.files if any(fnmatchcase(name, pattern) for pattern in patterns)]

    def text(self, name: str) -> str:
        """Content of a file; bytes that are no text become a replacement sign."""
        return _text(self.root / name)

    def yaml(self, name: str) -> Any:
        """Content of a YAML file, mappings with `__lines__`; None for an empty one."""
        return _yaml(self.root / name)

    def data(self, name: str) -> Any:
        """Content of a YAML file as plain data; an empty mapping if the file is empty or missing."""
        return without_lines(self.yaml(name) or {}) if name in self.files else {}

    @property
    def roles(self) -> list[str]:
        """Names of the roles."""
        return sorted({name.split("/")[1] for name in self.match("roles/*/*")})

    def options(self, role: str, entry: str = "main") -> dict[str, Any]:
        """The inputs of a role by its argument specs."""
        specs = self.data(f"roles/{role}/meta/argument_specs.yml").get("argument_specs", {})
        return (specs.get(entry) or {}).get("options") or {}

    def role_tasks(self, role: str, kind: str = "tasks") -> Iterator[Task]:
        """Tasks (or `handlers`) of a role, blocks opened."""
        for file in self.match(f"roles/{role}/{kind}/*.yml"):
            yield from flat(file, self.yaml(file) or [])

    def play_tasks(self) -> Iterator[Task]:
        """Tasks and handlers of every playbook."""
        for file, play in self.plays():
            for kind in ("pre_tasks", "tasks", "post_tasks", "handlers"):
                yield from flat(file, play.get(kind) or [])
        for file in self.match("ansible/tasks/*.yml", "ansible/recover/*/*.yml"):
            yield from flat(file, self.yaml(file) or [])

    def plays(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Plays of every playbook, with their file."""
        for file in self.playbooks:
            yield from ((file, play) for play in self.yaml(file) if isinstance(play, dict))

    @property
    def playbooks(self) -> list[str]:
        """Files that ansible-playbook takes."""
        candidates = self.match("site.yml", "ansible/*.yml")
        return [name for name in candidates if isinstance(self.yaml(name), list) and is_playbook(self.yaml(name))]

    def all_tasks(self) -> Iterator[Task]:
        """Every task and handler of roles and playbooks."""
        for role in self.roles:
            yield from self.role_tasks(role)
            yield from self.role_tasks(role, "handlers")
        yield from self.play_tasks()


@functools.cache
def _text(file: Path) -> str:
    return file.read_text(errors="replace")


@functools.cache
def _yaml(file: Path) -> Any:
    try:
        return yaml.load(_text(file), Loader=LineLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error


def is_playbook(content: list[Any]) -> bool:
    """Whether a YAML list holds plays and not tasks."""
    return all(
        isinstance(play, dict) and ("hosts" in play or any("import_playbook" in key for key in play))
        for play in content
    )


def flat(file: str, tasks: Iterable[Mapping[str, Any]]) -> Iterator[Task]:
    """Tasks with blocks opened; a block comes out itself when it carries more than tasks."""
    for task in tasks:
        if any(key in task for key in BLOCKS):
            for key in BLOCKS:
                yield from flat(file, task.get(key) or [])
            rest = {key: value for key, value in task.items() if key not in BLOCKS}
            yield Task(file, task["__lines__"][0], task["__lines__"][0], rest)
        else:
            first, last = task["__lines__"]
            yield Task(file, first, last, task)


# Expressions


class Anything(dict[str, Any]):
    """Knows every name: filters and tests are Ansible's business, only variables matter here."""

    def __contains__(self, key: object) -> bool:
        return True

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key) or (lambda *_, **__: default)


_JINJA = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])
_JINJA.filters, _JINJA.tests = Anything(_JINJA.filters), Anything(_JINJA.tests)


def names_in(template: str) -> set[str]:
    """Variables that a template reads and does not define itself.

    :raises jinja2.TemplateSyntaxError: if it is no template.
    """
    return jinja2.meta.find_undeclared_variables(_JINJA.parse(template))


def names_in_value(value: Any, key: str = "") -> set[str]:
    """Variables that a YAML value reads: in templates, and in bare expressions below the keys that hold such."""
    if isinstance(value, dict):
        return {name for k, item in value.items() if k != "__lines__" for name in names_in_value(item, k)}
    if isinstance(value, list):
        return {name for item in value for name in names_in_value(item, key)}
    if not isinstance(value, str):
        return set()
    bare = key in (*EXPRESSIONS, "that") and "{{" not in value
    return names_in("{{ (" + value + ") }}" if bare else value)


def lines_of(text: str, pattern: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Every match with its line number."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in re.finditer(pattern, line):
            yield number, match
