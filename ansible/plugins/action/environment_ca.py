"""Make the environment's CA, if there is none: a key (0600) and a certificate, as files on the controller.

    - name: Make the CA if there is none
      environment_ca: {key: .state/ca.key, certificate: .state/ca.crt, name: "arches local"}

Works in check mode too, like Ansible's password lookup: without a CA nothing after it could be checked.
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from pki import Authority, PkiError, new_authority, new_key


def write(path: Path, text: str, mode: int) -> None:
    """Put a file in place in one piece."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.arches-new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def ensure(key: Path, certificate: Path, name: str, days: int) -> bool:
    """Make what is missing; whether something was. Raises PkiError if the two do not fit each other."""
    if certificate.exists() and not key.exists():
        raise PkiError(
            f"{certificate} has lost its key {key}: put the key back, or remove the certificate to begin with a new CA"
        )
    if certificate.exists():
        Authority(key.read_text(), certificate.read_text())
        return False
    if not key.exists():
        write(key, new_key(), 0o600)
    write(certificate, new_authority(key.read_text(), name, days, datetime.datetime.now(datetime.UTC)), 0o644)
    return True


class ActionModule(ActionBase):
    """The action behind `environment_ca`; it runs on the controller and reaches no host."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the files, or leave them alone."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "key": {"type": "path", "required": True, "no_log": False},
                "certificate": {"type": "path", "required": True},
                "name": {"type": "str", "required": True},
                "days": {"type": "int", "default": 3650},
            }
        )
        try:
            result["changed"] = ensure(Path(args["key"]), Path(args["certificate"]), args["name"], args["days"])
        except PkiError as error:
            raise AnsibleActionFail(f"{args['certificate']}: {error}.") from error
        return result
