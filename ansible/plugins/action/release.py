"""Bring a host to a release; the archive travels only when the host does not have it.

    - name: Unpack the release
      release:
        owner: api                   # names the pending marker; a swap leaves `restart` there
        root: /opt/arches
        release: "{{ api_release }}" # name, version, archive, sha256: what ansible/release.yml wrote
        archives: .../releases       # directory of the archives on the controller
        activate: false              # true: also point `current` at it

Result: changed, previous (version that `current` named before), path, diff.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The action behind `release`."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host; send the archive and ask again when it wants it."""
        super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "owner": {"type": "str", "required": True},
                "root": {"type": "str", "required": True},
                "release": {"type": "dict", "required": True},
                "archives": {"type": "str", "required": True},
                "activate": {"type": "bool", "default": True},
                "keep": {"type": "int", "default": 5},
            }
        )
        wanted = {key: args[key] for key in ("owner", "root", "activate", "keep")}
        wanted |= {key: args["release"][key] for key in ("version", "sha256")}
        result = self._ask(wanted, task_vars)
        if result.get("wanted"):
            archive = os.path.join(args["archives"], args["release"]["archive"])
            if not os.path.exists(archive):
                raise AnsibleActionFail(f"{archive} is missing. Build it: ansible-playbook ansible/release.yml")
            folder = self._make_tmp_path()
            try:
                sent = self._transfer_file(archive, self._connection._shell.join_path(folder, "archive"))
                result = self._ask({**wanted, "archive": sent}, task_vars)
            finally:
                self._remove_tmp_path(folder, force=True)
        result.pop("wanted", None)
        return result

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="release", module_args=arguments, task_vars=task_vars, persist_files=True
        )
        return found
