"""Seal what git does not hold and a rebuild needs, and prove that a bundle opens and is complete (docs/escrow.md).

    - name: Seal a bundle and open it
      escrow:
        seal: true                            # false: only open and compare
        environment: "{{ environment_name }}"
        recipients: "{{ escrow_recipients }}" # public keys of age; empty in a local environment: two keys are drawn
        local: "{{ machine_provider == 'nspawn' }}"   # its secrets are files of state_dir, elsewhere those of the vault
        state_dir: "{{ state_dir }}"
        bundle: /media/safe/prod.age          # default: a new (or the newest) one in state_dir/escrow
        identity: /media/key/anna.txt         # private key; without it a bundle can be sealed, but not opened
        keep: 10                              # bundles in state_dir/escrow

    - name: Put back what a bundle holds      # of a local environment, where it is missing; nothing is written over
      escrow: {unpack: true, seal: false, ..., bundle: /media/safe/local.age, identity: /media/key/anna.txt}

The secrets are read here and not given as arguments, so that no log can show them. Returns `bundle`, `text` (one
sentence), and `opened_at` (seconds since 1970) if the bundle was opened and found complete.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from escrow import (
    Bundle,
    EscrowError,
    bundles,
    differences,
    drawn_identities,
    local_files,
    read_identity,
    seal,
    store,
    unpack,
    unseal,
)
from inventory_rules import secret_state

SPEC = {
    "seal": {"type": "bool", "required": True},
    "environment": {"type": "str", "required": True},
    "recipients": {"type": "list", "elements": "str", "required": True},
    "local": {"type": "bool", "required": True},
    "state_dir": {"type": "path", "required": True},
    "bundle": {"type": "path"},
    "identity": {"type": "path"},
    "keep": {"type": "int", "default": 10},
    "unpack": {"type": "bool", "default": False},
}


def vault_contents(variables: Mapping[str, Any], passwords: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every secret of the vault and what opens it, by name. Raises EscrowError if one has no value."""
    values: dict[str, str | None] = {}
    for name in sorted(name for name in variables if name.startswith("vault_")):
        try:
            values[name] = str(variables[name])
        except AnsibleError:
            values[name] = None
    lost = [name for name, value in values.items() if value is None or secret_state(value) != "good"]
    if lost or not values:
        raise EscrowError(f"vault.yml: no value for {', '.join(lost) or 'any secret'}. Write it, then seal again")
    kept = {f"vault/{name}": str(value).encode() for name, value in values.items()}
    return kept | {f"vault_password/{name}": password for name, password in passwords.items()}


def sealed_now(args: Mapping[str, Any], now: Bundle) -> Path:
    """Write a new bundle, and in the environment's own folder let go of the oldest; returns its file."""
    folder = Path(args["state_dir"]) / "escrow"
    stamp = now.made.translate({ord(sign): None for sign in "-:"}).replace("+0000", "Z")
    file = Path(args["bundle"] or folder / f"{now.environment}-{stamp}.age")
    try:
        store(file, seal(now))
    except OSError as error:
        raise EscrowError(f"{file} cannot be written: {error.strerror}. Choose another place with OUT=") from error
    for old in [] if args["bundle"] else bundles(folder, now.environment)[: -args["keep"]]:
        old.unlink()
    return file


def to_open(args: Mapping[str, Any]) -> Path:
    """The bundle that is to be opened: the one named, or the newest."""
    if args["bundle"]:
        return Path(args["bundle"])
    found = bundles(Path(args["state_dir"]) / "escrow", args["environment"])
    if not found:
        raise EscrowError(f"{args['state_dir']}/escrow has no bundle. Run `make escrow`, or name one with BUNDLE=")
    return found[-1]


def prove(file: Path, identities: list[Path], now: Bundle) -> None:
    """Every key opens the bundle, and it is what the environment has now. Raises EscrowError with all findings."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EscrowError(f"{file} cannot be read: {error.strerror}. Name another bundle with BUNDLE=") from error
    found: list[str] = []
    for identity in identities:
        try:
            found += differences(unseal(content, read_identity(identity)), now)
        except EscrowError as error:
            raise EscrowError(f"{file}, key {identity}: {error}") from error
    if found:
        raise EscrowError(f"{file}: {'; '.join(dict.fromkeys(found))}. `make escrow` seals a new bundle")


def put_back(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the named bundle holds is in state_dir. Raises EscrowError."""
    if not args["bundle"] or not args["identity"]:
        raise EscrowError("Name the bundle and a private key that opens it: -e bundle=FILE -e identity=FILE")
    file = Path(args["bundle"])
    try:
        held = unseal(file.read_bytes(), read_identity(Path(args["identity"])))
        written = unpack(held, args["environment"], Path(args["state_dir"]))
    except OSError as error:
        raise EscrowError(f"{file} cannot be read: {error.strerror}. Name another bundle") from error
    except EscrowError as error:
        raise EscrowError(f"{file}: {error}") from error
    return {"changed": bool(written), "text": f"{len(written)} files of {file} are back in {args['state_dir']}."}


class ActionModule(ActionBase):
    """The action behind `escrow`; it runs on the controller and reaches no host."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Seal if asked, then open if somebody's key is here."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(argument_spec=SPEC)
        try:
            return result | self._keep(args, task_vars or {})
        except EscrowError as error:
            # Ansible would append every cause to the sentence.
            raise AnsibleActionFail(f"{error}.") from None

    def _keep(self, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        if args["unpack"]:
            return put_back(args)
        state, sealing = Path(args["state_dir"]), args["seal"] and not self._task.check_mode
        contents = local_files(state) if args["local"] else self._vault_contents(task_vars)
        if sealing:
            (state / "escrow").mkdir(mode=0o700, exist_ok=True, parents=True)
        drawn = args["local"] and not args["recipients"]
        keys = drawn_identities(state / "escrow", draw=sealing) if drawn else []
        recipients = args["recipients"] or [str(read_identity(key).to_public()) for key in keys]
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        now = Bundle(args["environment"], made, recipients, contents)
        if args["seal"] and not sealing:
            return {"changed": True, "text": f"A bundle of {len(contents)} files would be sealed."}
        file = sealed_now(args, now) if sealing else to_open(args)
        result = {"changed": sealing, "bundle": str(file)}
        identities = [Path(args["identity"])] if args["identity"] else keys
        if not identities and not sealing:
            raise EscrowError("IDENTITY is not set: name the file with a recipient's private key")
        if not identities:
            return result | {
                "text": f"{file} is sealed. Nobody has opened it yet: `make escrow-check` with IDENTITY= proves it."
            }
        prove(file, identities, now)
        text = f"{file} of {len(contents)} files opens with {' and '.join(map(str, identities))} and is complete."
        return result | {"opened_at": int(datetime.datetime.now(datetime.UTC).timestamp()), "text": text}

    def _vault_contents(self, task_vars: Mapping[str, Any]) -> dict[str, bytes]:
        """The secrets as this run reads them, with the passwords that it was given for that."""
        # Ansible has no public way to ask for them.
        passwords = {name: secret.bytes for name, secret in self._loader._vault.secrets or []}
        return vault_contents(task_vars["hostvars"][task_vars["inventory_hostname"]], passwords)
