"""Give a host certificates of the environment's CA. The CA's key stays on the controller, the host's on the host.

    - name: Give the host its certificates
      host_certificate:
        folder: /etc/arches/tls                 # <name>.key, <name>.crt and ca.crt in there
        group: ssl-cert                         # may read the keys
        ca_key: "{{ ... }}"                     # PEM
        ca_certificate: "{{ ... }}"             # PEM; several while one CA follows another
        signed: [{name: host, common_name: data1, names: [data1, 203.0.113.31]}]
        given: [{name: edge, key: "{{ ... }}", certificate: "{{ ... }}"}]   # from elsewhere; wins over `signed`
        days: 365
        renew_days: 30
        readers: [{owner: postgres, action: reload}]

One module run when nothing changes: it makes missing keys and returns signing requests and present certificates. A
second run writes, when a certificate is missing, runs out, or does not fit names, key or CA. If that replaces a
certificate, every reader owes its action (the pending markers of `template_tree`); a first certificate has no readers.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from cryptography import x509

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from pki import Authority, PkiError, public_pem, sign, why_new

SPEC = {
    "folder": {"type": "str", "default": "/etc/arches/tls"},
    "group": {"type": "str", "default": "ssl-cert"},
    "ca_key": {"type": "str", "required": True, "no_log": True},
    "ca_certificate": {"type": "str", "required": True},
    "signed": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "common_name": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
        },
    },
    "given": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "key": {"type": "str", "required": True, "no_log": True},
            "certificate": {"type": "str", "required": True},
        },
    },
    "days": {"type": "int", "default": 365},
    "renew_days": {"type": "int", "default": 30},
    "readers": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"owner": {"type": "str", "required": True}, "action": {"type": "str", "required": True}},
    },
}


def file_entry(path: str, content: str, account: Mapping[str, str], mode: str = "0644") -> dict[str, Any]:
    """One file as the module template_tree wants it; `account` has its owner and group."""
    fixed: dict[str, Any] = {"on_change": [], "validate": None, "secret": True, "seed": False, "kind": "file"}
    return {"path": path.lstrip("/"), "content": content, **account, "mode": mode, **fixed}


def why_given(certificate: Mapping[str, str], found: Mapping[str, Any]) -> str | None:
    """Why a certificate from elsewhere has to be written; None if the host has it, with its key."""
    if found["certificate"] is None or found["request"] is None:
        return "there is none"
    if found["certificate"].strip() != certificate["certificate"].strip():
        return "another one is given"
    wanted = x509.load_pem_x509_certificate(certificate["certificate"].encode())
    if public_pem(x509.load_pem_x509_csr(found["request"].encode())) != public_pem(wanted):
        return "its key is another one"
    return None


def owed_actions(readers: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Actions by owner."""
    owed: dict[str, list[str]] = {}
    for reader in readers:
        owed.setdefault(reader["owner"], []).append(reader["action"])
    return owed


class ActionModule(ActionBase):
    """The action behind `host_certificate`."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host what it has, sign what is due, and write it."""
        super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(argument_spec=SPEC)
        given = {certificate["name"]: certificate for certificate in args["given"]}
        signed = {
            certificate["name"]: certificate for certificate in args["signed"] if certificate["name"] not in given
        }
        try:
            authority = Authority(args["ca_key"], args["ca_certificate"])
        except PkiError as error:
            raise AnsibleActionFail(f"{error}. See certificates_ca_key and certificates_ca_certificate.") from error

        names = {"names": [*signed, *given], "create": [*signed], "folder": args["folder"], "group": args["group"]}
        state: dict[str, Any] = self._execute_module("host_certificate", module_args=names, task_vars=task_vars)
        if state.get("failed"):
            return state
        try:
            entries, notes, replaced = self._due(args, signed, given, state, authority)
        except PkiError as error:
            raise AnsibleActionFail(str(error)) from error
        result: dict[str, Any] = {"changed": bool(state["changed"] or entries)}
        result["diff"] = [{"prepared": "".join(f"{note}\n" for note in state["notes"] + notes)}]
        if entries and not self._task.check_mode:
            written = self._execute_module(
                "template_tree",
                module_args={
                    "owner": "certificates",
                    "entries": entries,
                    "others": owed_actions(args["readers"]) if replaced else {},
                },
                task_vars=task_vars,
            )
            if written.get("failed"):
                return dict(written)
        return result

    def _due(
        self,
        args: Mapping[str, Any],
        signed: Mapping[str, Any],
        given: Mapping[str, Any],
        state: Mapping[str, Any],
        authority: Authority,
    ) -> tuple[list[dict[str, Any]], list[str], bool]:
        """Files to write, a line about each for the diff, and whether one of them replaces another."""
        now = datetime.datetime.now(datetime.UTC)
        account = {"owner": str(state["uid"]), "group": args["group"]}
        entries, notes, replaced = [], [], False
        for name, wanted in signed.items():
            path, found = f"{args['folder']}/{name}.crt", state["found"][name]
            request, identity = found["request"], (wanted["common_name"], wanted["names"])
            why: str | None = "there is none"  # in check mode there may not even be a key
            if request is not None:
                why = why_new(found["certificate"], request, *identity, authority, args["renew_days"], now)
            if why:
                content = sign(request, *identity, authority, args["days"], now) if request else ""
                entries.append(file_entry(path, content, account))
                notes.append(f"{path}: new certificate for {', '.join(wanted['names'])}, because {why}")
                replaced |= found["certificate"] is not None
        for name, certificate in given.items():
            path = f"{args['folder']}/{name}"
            why = why_given(certificate, state["found"][name])
            if why:
                entries.append(file_entry(f"{path}.key", f"{certificate['key'].strip()}\n", account, "0640"))
                entries.append(file_entry(f"{path}.crt", f"{certificate['certificate'].strip()}\n", account))
                notes.append(f"{path}.crt: the given certificate, because {why}")
                replaced |= state["found"][name]["certificate"] is not None
        bundle = f"{args['ca_certificate'].strip()}\n"
        if state["ca"] != bundle:
            entries.append(file_entry(f"{args['folder']}/ca.crt", bundle, account))
            notes.append(f"{args['folder']}/ca.crt: certificates of the CA")
            replaced |= state["ca"] is not None
        return entries, notes, replaced
