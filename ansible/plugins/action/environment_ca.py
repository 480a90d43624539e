"""Make the environment's CA, if there is none: a key (0600) and a certificate, as files on the controller.

    - name: Make the CA if there is none
      environment_ca: {key: .state/ca.key, certificate: .state/ca.crt, name: "arches local"}

Works in check mode too, like Ansible's password lookup: without a CA nothing after it could be checked.

One CA follows another in three steps, between which every host takes over what has changed:

    - environment_ca: {..., step: trust}    # a new key in <key>.next; the certificate file has both, the old one first
    - environment_ca: {..., step: sign}     # the new key takes the old one's place, which becomes <key>.former
    - environment_ca: {..., step: forget}   # the certificate file has the new one alone

Each can be repeated. Where the key is in a vault, a person does what `sign` does. `step: look` only says, by `signer`,
how many certificates there are and which of them the given key belongs to.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from pki import Authority, PkiError, authorities, new_authority, new_key, signer, to_pem
from whole_file import write


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


def trust(key: Path, certificate: Path, name: str, days: int) -> bool:
    """A new CA is trusted besides the old one. Raises PkiError."""
    following = key.with_name(f"{key.name}.next")
    if not following.exists():
        write(following, new_key(), 0o600)
    bundle = certificate.read_text()
    if signer(following.read_text(), bundle) is not None:
        return False
    fresh = new_authority(following.read_text(), name, days, datetime.datetime.now(datetime.UTC))
    write(certificate, f"{bundle.strip()}\n{fresh}", 0o644)
    return True


def sign(key: Path, certificate: Path) -> bool:
    """The new CA's key is the one that signs. Raises PkiError when there is none."""
    following = key.with_name(f"{key.name}.next")
    if not following.exists():
        if signer(key.read_text(), certificate.read_text()) == authorities(certificate.read_text()) - 1:
            return False
        raise PkiError(f"{following} is gone, so nothing can be signed with it; make a new CA: step trust")
    Authority(following.read_text(), certificate.read_text())
    # A link first: at no moment is there no key.
    former = key.with_name(f"{key.name}.former")
    former.unlink(missing_ok=True)
    os.link(key, former)
    following.replace(key)
    return True


def forget(key_pem: str, key: Path, certificate: Path) -> bool:
    """Only the CA that signs is trusted. Raises PkiError."""
    own = to_pem(Authority(key_pem, certificate.read_text()).certificate)
    key.with_name(f"{key.name}.former").unlink(missing_ok=True)
    if certificate.read_text() == own:
        return False
    write(certificate, own, 0o644)
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
                "step": {"choices": ["make", "look", "trust", "sign", "forget"], "default": "make"},
                "key_pem": {"type": "str", "no_log": True},
            },
            required_if=[["step", "look", ["key_pem"]], ["step", "forget", ["key_pem"]]],
        )
        key, certificate, born = Path(args["key"]), Path(args["certificate"]), (args["name"], args["days"])
        steps: dict[str, Callable[[], bool]] = {
            "make": lambda: ensure(key, certificate, *born),
            "look": lambda: False,
            "trust": lambda: trust(key, certificate, *born),
            "sign": lambda: sign(key, certificate),
            "forget": lambda: forget(args["key_pem"], key, certificate),
        }
        try:
            result["changed"] = steps[args["step"]]()
            if args["step"] == "look":
                bundle = certificate.read_text()
                result.update(authorities=authorities(bundle), signer=signer(args["key_pem"], bundle))
        except PkiError as error:
            raise AnsibleActionFail(f"{args['certificate']}: {error}.") from error
        return result
