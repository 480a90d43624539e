"""One step of taking a whole cluster back to an earlier moment, on one data host. Each can be repeated.

    - {name: What is here is known, postgres_rewind: {step: look, room_for: 1073741824}}
    - {name: The data directory is set aside, postgres_rewind: {step: aside, mark: 20260101T100000Z}}
    - {name: The earlier state is restored, postgres_rewind: {step: restore, mark: ..., target: {...}}}
    - {name: The restored state takes its place, postgres_rewind: {step: swap, mark: ...}}
    - {name: What was set aside returns, postgres_rewind: {step: back, mark: ...}}
    - {name: What was set aside is removed, postgres_rewind: {step: forget, mark: ...}}

`<data>.before-<mark>` is the state before, `<data>.rewound-<mark>` the one that is being made. While a rewind is under
way no host has anything at `<data>` itself, and in etcd the cluster stays initialized: a Patroni that somebody starts,
or a host that boots, waits for a leader and does no harm.

Results: look: data (whether there is any), marks (of what was set aside, oldest first), short (why there is no room, if
so), alive (members whose Patroni lives, by etcd). restore: timeline. The others: changed. `forget` without a mark
removes whatever was set aside.
"""

from __future__ import annotations

import os
import re
import shutil
import typing as t
from collections.abc import Callable, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.patroni_config import ConfigError, PatroniConfig
from ansible.module_utils.recovery_target import amount
from ansible.module_utils.restored_server import RestoredServer, RestoreError, run

NAME = "arches-rewind"
# What a host needs beside the data: WAL of the recovery, and of the time after.
SPARE = 1 << 30


class RewindError(Exception):
    """What is wrong and what to do about it."""


def rewound(member: PatroniConfig, mark: str) -> RestoredServer:
    """The server of the restored state."""
    # Its new timeline waits for the archive until it leads. Were it there before, the state before could not be started
    # any more: a server looks for the newest timeline in the archive, and refuses when that is not its own child.
    waiting = {"archive_mode": "on", "archive_command": ""}
    return RestoredServer(NAME, member.beside("rewound", mark), member.bin, settings=waiting)


def restore(member: PatroniConfig, mark: str, target: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The earlier state lies beside the data directory, promoted and shut down. Raises RestoreError."""
    server = rewound(member, mark)
    for other in set(member.kept("rewound")) - {server.folder}:
        remove(other)
    if not server.has_arrived:
        server.restore(target)
    while not (server.has_arrived and server.control()["Database cluster state"] == "shut down"):
        server.arrive()
        # What pgBackRest wrote for the recovery would be read again by the next server.
        server.query("ALTER SYSTEM RESET ALL")
        server.query("CHECKPOINT")
        server.stop()
    return {"changed": True, "timeline": int(server.control()["Latest checkpoint's TimeLineID"])}


# Data directories


def look(member: PatroniConfig, room_for: int) -> dict[str, t.Any]:
    """What an earlier rewind has left here, whether there is room, and whose Patroni lives. Raises ConfigError."""
    free, needed = shutil.disk_usage(os.path.dirname(member.data)).free, room_for + SPARE
    short = f"needs {amount(needed)} beside its data and has {amount(free)} free" if room_for and free < needed else ""
    return {
        "data": os.path.exists(member.data),
        "marks": [folder.rpartition("-")[2] for folder in member.kept("before")],
        "short": short,
        "alive": member.alive(),
    }


def aside(member: PatroniConfig, mark: str) -> bool:
    """The data directory has another name. Raises RewindError when a server runs on it."""
    if not os.path.exists(member.data):
        return False
    if run(["runuser", "-u", "postgres", "--", f"{member.bin}/pg_ctl", "status", "-D", member.data]).returncode == 0:
        raise RewindError(
            "Postgres still runs here. Stop it (`systemctl stop patroni`), then run the same command again."
        )
    os.rename(member.data, member.beside("before", mark))
    return True


def swap(member: PatroniConfig, mark: str) -> bool:
    """The restored state is the data directory and nothing keeps it from leading. Raises RewindError, ConfigError."""
    folder = member.beside("rewound", mark)
    if not os.path.exists(folder):
        if os.path.exists(member.data):
            return False
        raise RewindError(f"{folder} is gone. Begin anew with -e restart=true.")
    if os.path.exists(member.data):
        raise RewindError(
            f"Something came to {member.data} meanwhile. Look what it is, move it away, run the same command again."
        )
    member.forget_leader()
    os.rename(folder, member.data)
    return True


def back(member: PatroniConfig, mark: str) -> bool:
    """What was set aside is the data directory again, if there is none."""
    for folder in member.kept("rewound"):
        rewound(member, folder.rpartition("-")[2]).stop()
        remove(folder)
    before = member.beside("before", mark)
    if os.path.exists(member.data) or not os.path.exists(before):
        return False
    os.rename(before, member.data)
    return True


def forget(member: PatroniConfig, mark: str | None) -> bool:
    """What was set aside is gone, with what an interrupted removal has left."""
    before = [folder for folder in member.kept("before") if mark is None or folder == member.beside("before", mark)]
    for folder in before:
        remove(folder)
    for folder in member.kept("removed"):
        shutil.rmtree(folder)
    return bool(before)


def remove(folder: str) -> None:
    """Remove a folder; it loses its name first, so that nobody takes half of it for the whole."""
    doomed = re.sub(r"\.(before|rewound)-", ".removed-", folder)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "step": {"choices": ["look", "aside", "restore", "swap", "back", "forget"], "required": True},
            "mark": {"type": "str"},
            "target": {"type": "dict"},
            "room_for": {"type": "int", "default": 0},
        },
        required_if=[["step", step, ["mark"]] for step in ("aside", "restore", "swap", "back")],
        supports_check_mode=True,
    )
    params = module.params
    steps: dict[str, Callable[[PatroniConfig], t.Any]] = {
        "look": lambda member: look(member, params["room_for"]),
        "restore": lambda member: restore(member, params["mark"], params["target"]),
        "aside": lambda member: {"changed": aside(member, params["mark"])},
        "swap": lambda member: {"changed": swap(member, params["mark"])},
        "back": lambda member: {"changed": back(member, params["mark"])},
        "forget": lambda member: {"changed": forget(member, params["mark"])},
    }
    if module.check_mode and params["step"] != "look":
        module.exit_json(changed=True)
    try:
        result = {"changed": False} | steps[params["step"]](PatroniConfig.read())
    except (RewindError, RestoreError, ConfigError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
