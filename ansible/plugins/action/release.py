"""Bring a host to a release; the archive travels only when the host does not have it.

    - name: Unpack the release
      release:
        owner: api                   # names the pending marker; a swap leaves `restart` there
        root: /opt/arches
        release: "{{ api_release }}" # its record: name, version, archive, sha256, size, space
        archives: .../releases       # directory of archives, signatures and records on the controller
        public_key: RWQ...           # refuse what this key has not signed, or was made for another host; without one
                                     # only the checksum counts (the apt repository carries signatures of its own)
        activate: false              # true: also point `current` at it
        record: /etc/arches/release  # says what the host was given, and when; written with `activate`. Beside the
                                     # releases, in records/, each has its own
        keep: 5                      # remove all but the last five that were current; not given: remove nothing

Result: changed, previous (version that `current` named before), path, recorded (whether the record named the release
before), diff. A refusal changes nothing on the host.
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
                "public_key": {"type": "str", "no_log": False},
                "activate": {"type": "bool", "default": True},
                "record": {"type": "str"},
                "keep": {"type": "int", "default": 0},
            }
        )
        release = args["release"]
        wanted = {key: args[key] for key in ("owner", "root", "release", "public_key", "activate", "record", "keep")}
        result = self._ask(wanted, task_vars)
        if result.get("wanted"):
            archive = os.path.join(args["archives"], release["archive"])
            if not os.path.exists(archive):
                raise AnsibleActionFail(
                    f"{archive} is missing: build it (ansible/release.yml, or make release VERSION=... for a tag), "
                    "or fetch it with its .minisig and its .json."
                )
            folder = self._make_tmp_path()
            try:
                sent = self._transfer_file(archive, self._connection._shell.join_path(folder, "archive"))
                result = self._ask({**wanted, "archive": sent, "signature": signature_of(archive)}, task_vars)
            finally:
                self._remove_tmp_path(folder, force=True)
        result.pop("wanted", None)
        return result

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="release", module_args=arguments, task_vars=task_vars, persist_files=True
        )
        return found


def signature_of(archive: str) -> str:
    """The signature beside an archive; empty when there is none, which is for the host to refuse."""
    if not os.path.exists(f"{archive}.minisig"):
        return ""
    with open(f"{archive}.minisig", encoding="utf-8") as stream:
        return stream.read()
