"""Render a whole tree of templates onto a host in one module run.

    - name: Configure Redis
      template_tree:
        owner: redis                  # names the pending marker; normally the role
        files:                        # every template below templates/ is named here
          etc/redis/redis.conf: {group: redis, mode: "0640", on_change: [restart], validate: "check %s"}
          etc/redis/users.acl: {group: redis, mode: "0640", secret: true, on_change: [reload]}
          etc/redis/old.conf: {remove: true}
          etc/redis/tls.conf: {when: "{{ redis_tls }}"}
        directories:
          var/lib/redis/backup: {owner: redis, group: redis, mode: "0750"}
      notify: Redis changed

Keys of a file: owner, group (root), mode ("0644"), on_change ([]), validate (none), secret, seed, remove (false) and
when (true; a file with `when: false` is left alone). The source of a file is `<src>/<path>.j2`; `src` is `templates`
of the role (of the playbook's folder outside a role) or an absolute path. Names that begin with `_` are parts for
`include` and `import`. The header variable `ansible_managed` names the template.

Result: changed, changed_files, actions (union of on_change over changed files and of what an earlier run still owes),
pending, diff.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar, trust_as_template

FILE_KEYS: dict[str, Any] = {
    "owner": "root",
    "group": "root",
    "mode": "0644",
    "on_change": [],
    "validate": None,
    "secret": False,
    "seed": False,
    "remove": False,
    "when": True,
}
DIRECTORY_KEYS: dict[str, Any] = {"owner": "root", "group": "root", "mode": "0755"}
MODE = re.compile(r"0[0-7]{3}|[1-7][0-7]{3}")


def read_keys(path: str, given: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """One file's or directory's settings with defaults filled in. Raises AnsibleActionFail naming the fix."""
    if given is not None and not isinstance(given, Mapping):
        raise AnsibleActionFail(f"{path}: write a mapping such as {{mode: '0644'}}, not {given!r}.")
    if path != os.path.normpath(path) or path.startswith(("/", "..")):
        raise AnsibleActionFail(f"{path}: write the path relative to the root, such as etc/redis/redis.conf.")
    entry = {**known, **(given or {})}
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise AnsibleActionFail(f"{path}: unknown key {', '.join(unknown)}. Known keys: {', '.join(known)}.")
    if not isinstance(entry["mode"], str) or not MODE.fullmatch(entry["mode"]):
        raise AnsibleActionFail(f"{path}: mode is {entry['mode']!r}. Write it quoted, with four digits: '0644'.")
    for key, default in known.items():
        if isinstance(default, bool) and not isinstance(entry[key], bool):
            raise AnsibleActionFail(f"{path}: {key} is {entry[key]!r}. Write true or false.")
    if not isinstance(entry.get("on_change", []), list):
        raise AnsibleActionFail(f"{path}: on_change is {entry['on_change']!r}. Write a list: [restart].")
    if entry.get("validate") is not None and "%s" not in entry["validate"]:
        raise AnsibleActionFail(f"{path}: validate does not say where the file goes. Write %s in it.")
    return entry


def find_templates(source: str) -> set[str]:
    """Paths (without .j2) of all templates below a folder. Raises AnsibleActionFail for a name that is not *.j2."""
    found = set()
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), source)
            if name.startswith("_"):
                continue
            if not name.endswith(".j2"):
                raise AnsibleActionFail(f"{os.path.join(source, path)}: name it {name}.j2, or move it out of the tree.")
            found.add(path.removesuffix(".j2"))
    return found


def match_names(settings: Mapping[str, dict[str, Any]], templates: set[str], label: str) -> None:
    """Check that files and templates name each other. Raises AnsibleActionFail for the first that does not."""
    for path in sorted(templates - set(settings)):
        raise AnsibleActionFail(
            f"{label}/{path}.j2 is not named in `files`. Add `{path}: {{}}` there "
            f"(with `when: false` where it is not wanted), or delete the template."
        )
    for path in sorted(set(settings) - templates):
        if not settings[path]["remove"]:
            raise AnsibleActionFail(
                f"`files` names {path} but {label}/{path}.j2 does not exist. "
                f"Write the template, or take the name out (`remove: true` deletes the file from hosts)."
            )


def render(
    templar: Templar, loader: DataLoader, path: str, label: str, variables: Mapping[str, Any], search: list[str]
) -> str:
    """Render one template file with Ansible's own engine.

    `label` is the template's name in errors and in `ansible_managed`. Raises AnsibleActionFail.
    """
    header = f"Written by Ansible from {label}: change it there."
    engine = templar.copy_with_new_env(
        searchpath=[os.path.dirname(path), *search], available_variables={**variables, "ansible_managed": header}
    )
    try:
        # The file's text is trusted on purpose: untrusted text comes back unrendered, without an error.
        text = trust_as_template(loader.get_text_file_contents(path))
        content = engine.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
    except AnsibleError as error:
        raise AnsibleActionFail(f"{label}: {error}") from error
    if content is None:
        return ""
    if not isinstance(content, str):
        raise AnsibleActionFail(
            f"{label} renders to a {type(content).__name__}, not to text. End it with a filter such as to_nice_yaml."
        )
    return str(content)


class ActionModule(ActionBase):
    """The action behind `template_tree`."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Render on the controller, then compare, validate and write on the host in one module run."""
        super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "owner": {"type": "str", "required": True},
                "files": {"type": "dict", "required": True},
                "directories": {"type": "dict", "default": {}},
                "src": {"type": "str", "default": "templates"},
                "root": {"type": "str", "default": "/"},
            }
        )
        if "/" in args["owner"]:
            raise AnsibleActionFail(f"owner is {args['owner']!r}. Write a plain name: it names the pending marker.")
        entries = [
            {"path": path, **read_keys(path, given, DIRECTORY_KEYS), **self._nothing("directory")}
            for path, given in sorted((args["directories"] or {}).items())
        ]
        entries += self._file_entries(args["src"], args["files"], task_vars or {})
        result: dict[str, Any] = self._execute_module(
            module_name="template_tree",
            module_args={"owner": args["owner"], "root": args["root"], "entries": entries},
            task_vars=task_vars,
        )
        result.pop("invocation", None)  # it repeats every content, secret ones too
        return result

    def _file_entries(
        self, source: str, files: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Every named file with its rendered content, as the module wants them."""
        role = self._task._role
        base = role._role_path if role else self._loader.get_basedir()
        label = f"roles/{role.get_name()}/{source}" if role and not os.path.isabs(source) else source
        folder = os.path.join(base, source)
        settings = {path: read_keys(path, given, FILE_KEYS) for path, given in files.items()}
        match_names(settings, find_templates(folder), label)
        entries = []
        for path, entry in sorted(settings.items()):
            if not entry.pop("when"):
                continue
            if entry.pop("remove"):
                entries.append({"path": path, **entry, "kind": "absent", "content": ""})
                continue
            template = os.path.join(folder, f"{path}.j2")
            content = render(self._templar, self._loader, template, f"{label}/{path}.j2", variables, [folder, base])
            entries.append({"path": path, **entry, "kind": "file", "content": content})
        return entries

    @staticmethod
    def _nothing(kind: str) -> dict[str, Any]:
        """The keys that an entry without content does not use."""
        return {"kind": kind, "content": "", "on_change": [], "validate": None, "secret": False, "seed": False}
