"""A copy of the database as it was at an earlier moment, beside production: to look, or to take rows back.

    - name: The earlier state can be asked
      postgres_copy:
        state: present
        target: {kind: time, value: 2026-01-01T10:00:00+00, backup: ..., timeline: 3}
        size: 1073741824
        config: /etc/arches-prover/pgbackrest.conf      # how pgBackRest reaches the store; it need only read
        memory_mb: 512
        keep_h: 24

It archives nothing, listens on its own socket only, and ends and removes itself after `keep_h` hours. A copy of
the same target that is there already is used again; one of another target is replaced.

`look` only says whether there is room (`short`, a sentence if not) and whether the wanted copy is there (`same`).

Results: changed, folder, sockets; short, same.
"""

from __future__ import annotations

import json
import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.recovery_target import amount
from ansible.module_utils.restored_server import RestoredServer, RestoreError, run

NAME = "arches-copy"
HOME = "/var/lib/arches-copy"
DATA, NOTE = f"{HOME}/data", f"{HOME}/target.json"
BIN = "/usr/lib/postgresql/17/bin"
# For WAL, and for what a comparison needs.
SPARE = 1 << 30
# After its time, or when it is stopped; not after a failure that somebody may want to go on from.
CLEAN = f"case $SERVICE_RESULT in success|timeout) rm -rf {DATA} {NOTE};; esac"


def server(params: dict[str, t.Any]) -> RestoredServer:
    """The copy's server. The settings that came with the backup are those of a larger host."""
    memory = params["memory_mb"]
    return RestoredServer(
        NAME,
        DATA,
        BIN,
        # Only root reads the file; the units are handed a copy.
        options=("--config=${CREDENTIALS_DIRECTORY}/pgbackrest.conf", f"--lock-path={HOME}/lock"),
        restoring=("--archive-mode=off",),
        settings={
            "archive_mode": "off",
            "shared_buffers": f"{memory // 4}MB",
            "maintenance_work_mem": f"{memory // 8}MB",
            "huge_pages": "off",
            "fsync": "off",
            "full_page_writes": "off",
        },
        properties=(f"LoadCredential=pgbackrest.conf:{params['config']}", f"MemoryMax={memory}M"),
        serving_properties=(f"RuntimeMaxSec={params['keep_h']}h", f"ExecStopPost=/bin/sh -c '{CLEAN}'"),
    )


def present(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """The copy serves. Raises RestoreError."""
    copy, target = server(params), params["target"]
    if noted() == target and copy.serves:
        return {"changed": False}
    if noted() != target:
        absent(params)
        if short := look(params)["short"]:
            raise RestoreError(short)
        os.makedirs(HOME, mode=0o750, exist_ok=True)
        shutil.chown(HOME, "postgres", "postgres")
        with open(NOTE, "w", encoding="utf-8") as stream:
            json.dump(target, stream)
        shutil.chown(NOTE, "postgres", "postgres")
    if not copy.has_arrived:
        copy.restore(target)
    copy.arrive()
    return {"changed": True}


def noted() -> dict[str, t.Any] | None:
    """The target of the copy that is here, or half of it."""
    if not os.path.exists(NOTE):
        return None
    with open(NOTE, encoding="utf-8") as stream:
        target: dict[str, t.Any] = json.load(stream)
    return target


def look(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """What could be made here."""
    folder = HOME if os.path.exists(HOME) else os.path.dirname(HOME)
    free, needed = shutil.disk_usage(folder).free, params["size"] + SPARE
    same = noted() == params["target"]
    short = f"{HOME} has {amount(free)} free, the copy needs {amount(needed)}. Make room, or mount a larger disk there."
    return {"changed": False, "same": same, "short": short if free < needed and not same else ""}


def absent(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Nothing is left of a copy."""
    existed = os.path.exists(NOTE)
    server(params).stop()
    run(["rm", "-rf", DATA, NOTE])
    return {"changed": existed}


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["look", "present", "absent"], "required": True},
            "target": {"type": "dict"},
            "size": {"type": "int"},
            "config": {"type": "path", "required": True},
            "memory_mb": {"type": "int", "default": 512},
            "keep_h": {"type": "int", "default": 24},
        },
        required_if=[["state", state, ["target", "size"]] for state in ("look", "present")],
        supports_check_mode=True,
    )
    state = module.params["state"]
    if module.check_mode and state != "look":
        module.exit_json(changed=True)
    try:
        result = {"look": look, "present": present, "absent": absent}[state](module.params)
    except RestoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(folder=DATA, sockets=f"/run/{NAME}", **result)


if __name__ == "__main__":
    main()
