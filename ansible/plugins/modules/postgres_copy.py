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

Results: changed, folder, sockets.
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
        options=(f"--config={params['config']}",),
        restoring=("--archive-mode=off",),
        settings={
            "archive_mode": "off",
            "shared_buffers": f"{memory // 4}MB",
            "maintenance_work_mem": f"{memory // 8}MB",
            "max_connections": "20",
            "huge_pages": "off",
            "fsync": "off",
            "full_page_writes": "off",
        },
        properties=(f"MemoryMax={memory}M", f"RuntimeMaxSec={params['keep_h']}h", f"ExecStopPost=/bin/sh -c '{CLEAN}'"),
    )


def present(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """The copy serves. Raises RestoreError."""
    copy, target = server(params), params["target"]
    if noted() == target and copy.serves:
        return {"changed": False}
    if noted() != target:
        absent(params)
        require_room(params["size"])
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


def require_room(size: int) -> None:
    """There is room for the copy. Raises RestoreError."""
    os.makedirs(HOME, mode=0o750, exist_ok=True)
    free = shutil.disk_usage(HOME).free
    if free < size + SPARE:
        raise RestoreError(
            f"{HOME} has {amount(free)} free, the copy needs {amount(size + SPARE)}. Make room, or mount a larger disk."
        )


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
            "state": {"choices": ["present", "absent"], "required": True},
            "target": {"type": "dict"},
            "size": {"type": "int"},
            "config": {"type": "path", "required": True},
            "memory_mb": {"type": "int", "default": 512},
            "keep_h": {"type": "int", "default": 24},
        },
        required_if=[["state", "present", ["target", "size"]]],
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    try:
        result = (present if module.params["state"] == "present" else absent)(module.params)
    except RestoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(folder=DATA, sockets=f"/run/{NAME}", **result)


if __name__ == "__main__":
    main()
