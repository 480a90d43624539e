"""Say what is true now on the data hosts: who leads Postgres, Redis and etcd, who follows, what is wrong.

    - name: Ask who leads
      fleet_state:
        hosts: {data1: 203.0.113.31, ...}
        ports: {etcd: 2379, patroni: 8008, redis: 6379, sentinel: 26379}
        ca_certificate: "{{ certificates_ca_certificate }}"
        ca_key: "{{ certificates_ca_key }}"
        redis: {user: admin, password: "{{ ... }}", monitor: arches}
      delegate_to: localhost

For the controller: no host is logged in to. etcd answers only to a certificate, so one is made for the occasion, good
for a day, and forgotten.

Result: state (see module_utils/fleet_state.py) and complaints (a sentence for each thing that is not well).
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet_state import Fleet, complaints, look
from ansible.module_utils.json_https import tls_context
from ansible.module_utils.pki import Authority, PkiError, client_certificate


def main() -> None:
    """Module entry point."""
    text = {"type": "str", "required": True}
    port = {"type": "int", "required": True}
    module = AnsibleModule(
        argument_spec={
            "hosts": {"type": "dict", "required": True},
            "ports": {
                "type": "dict",
                "required": True,
                "options": {"etcd": port, "patroni": port, "redis": port, "sentinel": port},
            },
            "ca_certificate": text,
            "ca_key": {**text, "no_log": True},
            "redis": {
                "type": "dict",
                "required": True,
                "options": {"user": text, "password": {**text, "no_log": True}, "monitor": text},
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        authority = Authority(params["ca_key"], params["ca_certificate"])
        key, certificate = client_certificate("controller", authority, datetime.datetime.now(datetime.UTC))
    except PkiError as error:
        module.fail_json(msg=f"{error}: see vault_ca_key and ca.crt of this environment")
    with tempfile.TemporaryDirectory(prefix="arches-") as folder:
        ca_file = Path(folder, "ca.crt")
        own = Path(folder, "controller.pem")
        ca_file.write_text(params["ca_certificate"])
        own.touch(mode=0o600)
        own.write_text(key + certificate)
        fleet = Fleet(
            hosts=params["hosts"],
            ports=params["ports"],
            context=tls_context(str(ca_file), str(own)),
            ca_file=str(ca_file),
            redis_user=params["redis"]["user"],
            redis_password=params["redis"]["password"],
            redis_monitor=params["redis"]["monitor"],
        )
        state = look(fleet)
    module.exit_json(changed=False, state=state, complaints=complaints(state, list(params["hosts"])))


if __name__ == "__main__":
    main()
