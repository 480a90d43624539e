"""Action ``fleet_lock``: nobody else changes the fleet as long as this ansible-playbook runs.

    - name: Nobody else changes the fleet meanwhile
      fleet_lock:
        purpose: deploy v1.4.0
        endpoints: {data1: "https://203.0.113.31:2379", ...}
        ca_certificate: "{{ certificates_ca_certificate }}"
        ca_key: "{{ certificates_ca_key }}"
        break_holder: anna@ctl1      # optional: take it from this fleet_lock.holder
        without_etcd: true           # optional: consent to go on without a lock when etcd has no quorum
        state: kept                  # optional: do not take it, make sure that it was not lost; `asked`: say who has it

There is no unlocking: the lock ends with the process (docs/recovery.md). A playbook that a playbook with the lock has
started is part of it and needs none of its own.

Result: locked; why (when it is not).
"""

import datetime
import os
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
import fleet_lock
from pki import Authority, PkiError, client_certificate


class ActionModule(ActionBase):
    """It runs on the controller and reaches etcd only."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the lock, or make sure of it.

        :raises AnsibleActionFail: with who has it, or why nobody can.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        text, flag = {"type": "str", "required": True}, {"type": "bool", "default": False}
        _, args = self.validate_argument_spec(
            {
                "purpose": text,
                "endpoints": {"type": "dict", "required": True},
                "ca_certificate": text,
                "ca_key": {**text, "no_log": True},
                "break_holder": {"type": "str", "default": ""},
                "without_etcd": flag,
                "state": {"choices": ["taken", "kept", "asked"], "default": "taken"},
                "ttl_s": {"type": "int", "default": fleet_lock.TTL_S},
            }
        )
        if self._task.check_mode:
            args["state"] = "asked"
        try:
            return result | lock(args)
        except fleet_lock.NoQuorum as error:
            if args["without_etcd"] or args["state"] == "asked":
                return result | {"changed": False, "locked": False, "why": str(error)}
            raise AnsibleActionFail(
                f"The fleet lock is not possible: {error}. Bring etcd back first (docs/runbooks/EtcdHasNoLeader.md). "
                f"Only a recovery that does just that goes on without a lock, with -e without_lock=true, "
                f"when you know that nobody else works on the fleet."
            ) from error
        except (fleet_lock.LockError, PkiError) as error:
            raise AnsibleActionFail(f"{error}.") from error


def lock(args: dict[str, Any]) -> dict[str, Any]:
    """Take the lock or make sure of it. Raises LockError or PkiError."""
    # An action runs in a child of ansible-playbook.
    playbook = os.getppid()
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority(args["ca_key"], args["ca_certificate"])
    own = "".join(client_certificate("controller", authority, now))
    patience_s = 0.0 if args["state"] == "asked" else fleet_lock.ELECTION_S
    etcd = fleet_lock.Etcd(args["endpoints"], fleet_lock.context_of(args["ca_certificate"], own), patience_s)
    family = fleet_lock.family_of(playbook)
    claim = fleet_lock.Claim(fleet_lock.holder(), args["purpose"], f"{now:%Y-%m-%d %H:%M:%S} UTC", family[0])
    if args["state"] == "asked":
        other = fleet_lock.look(etcd)
        return {"changed": False, "locked": False, "why": fleet_lock.held(other.claim) if other else ""}
    if args["state"] == "kept":
        fleet_lock.assure(etcd, family)
        return {"changed": False, "locked": True, "why": ""}
    lease = fleet_lock.acquire(etcd, claim, args["break_holder"], args["ttl_s"], family)
    if lease is not None:
        try:
            fleet_lock.keep(args["endpoints"], args["ca_certificate"], own, lease, playbook, args["ttl_s"])
        except fleet_lock.LockError:
            fleet_lock.revoke(etcd, lease)
            raise
    return {"changed": False, "locked": True, "why": ""}
