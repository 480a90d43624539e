"""One step of taking a whole cluster back to an earlier moment, on one data host. Each can be repeated.

    - {name: What is here is known, postgres_rewind: {step: look, room_for: 1073741824}}
    - {name: The data directory is set aside, postgres_rewind: {step: aside, mark: 20260101T100000Z}}
    - {name: The earlier state is restored, postgres_rewind: {step: restore, mark: ..., target: {...}}}
    - {name: The restored state takes its place, postgres_rewind: {step: swap, mark: ...}}
    - {name: What was set aside returns, postgres_rewind: {step: back}}
    - {name: What was set aside is removed, postgres_rewind: {step: forget}}

`<data>.before-<mark>` is the state before, `<data>.rewound-<mark>` the one that is being made. While a rewind is under
way no host has anything at `<data>` itself, and in etcd the cluster stays initialized: a Patroni that somebody starts,
or a host that boots, waits for a leader and does no harm.

Results: look: before (what was set aside), short (a sentence when there is no room), alive (members whose Patroni
lives, by etcd). restore: timeline. The others: changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
import typing as t
from collections.abc import Callable, Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.patroni_config import ConfigError, PatroniConfig
from ansible.module_utils.recovery_target import amount, explain

STANZA = "arches"
# The restored server's socket; only root and postgres get in.
SOCKETS = "/run/arches-rewind"
RESTORE, RECOVERY = "arches-rewind-restore", "arches-rewind-recovery"
POLL_S = 0.5
# What a host needs beside the data: WAL of the recovery, and of the time after.
SPARE = 1 << 30


class RewindError(Exception):
    """What is wrong and what to do about it."""


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its status."""
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, "LC_ALL": "C"}
    )


class Unit:
    """A transient unit: its work goes on when the connection to this host does not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, command: Sequence[str], *options: str) -> None:
        """Start it as the database's user. Raises RewindError."""
        self.stop()
        words = ["systemd-run", "--quiet", "--no-block", f"--unit={self.name}", "--uid=postgres", "--gid=postgres"]
        done = run([*words, "--property=RemainAfterExit=yes", *options, "--", *command])
        if done.returncode:
            raise RewindError(f"{self.name} cannot be started: {done.stderr.strip()}")

    def state(self) -> dict[str, str]:
        """What systemd knows."""
        shown = run(["systemctl", "show", "-p", "ActiveState,SubState,Result,InvocationID", self.name]).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    @property
    def works(self) -> bool:
        """Whether its process runs."""
        state = self.state()
        return state["ActiveState"] in ("activating", "deactivating") or state["SubState"] == "running"

    def said(self) -> str:
        """What it wrote."""
        return run(["journalctl", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={self.state()['InvocationID']}"]).stdout

    def stop(self) -> None:
        """It is gone, its process ended as it should."""
        run(["systemctl", "stop", self.name])
        run(["systemctl", "reset-failed", self.name])


# The restored state


def restore(member: PatroniConfig, mark: str, target: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The earlier state lies beside the data directory, promoted and shut down. Raises RewindError."""
    folder = member.beside("rewound", mark)
    for other in set(member.kept("rewound")) - {folder}:
        remove(other)
    unit = Unit(RESTORE)
    if unit.works or not is_restored(member, folder):
        copy_backup(unit, folder, target)
    while not is_at_target(member, folder):
        replay(member, folder)
    return {"changed": True, "timeline": int(member.control(folder)["Latest checkpoint's TimeLineID"])}


def is_restored(member: PatroniConfig, folder: str) -> bool:
    """Whether every file of the backup is there: pgBackRest gives pg_control its name at the very end."""
    return bool(member.control(folder)) and not os.path.exists(f"{folder}/backup.manifest")


def is_at_target(member: PatroniConfig, folder: str) -> bool:
    """Whether the server has arrived, promoted itself and ended well."""
    arrived = not os.path.exists(f"{folder}/recovery.signal")
    return arrived and member.control(folder)["Database cluster state"] == "shut down"


def copy_backup(unit: Unit, folder: str, target: Mapping[str, t.Any]) -> None:
    """Let pgBackRest restore; what an interrupted try has brought is kept. Raises RewindError."""
    if not unit.works:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        shutil.chown(folder, "postgres", "postgres")
        before = [] if target["kind"] == "name" else ["--target-exclusive"]
        unit.start(
            [
                "/usr/bin/pgbackrest", f"--stanza={STANZA}", f"--pg1-path={folder}", "--delta", "restore",
                f"--set={target['backup']}", f"--type={target['kind']}", f"--target={target['value']}", *before,
                f"--target-timeline={target['timeline']}", "--target-action=promote", "--log-level-console=info",
            ],
            "--service-type=oneshot",
        )  # fmt: skip
    while unit.works:
        time.sleep(POLL_S)
    if unit.state()["Result"] != "success":
        raise RewindError(explain(unit.said()))
    unit.stop()


def replay(member: PatroniConfig, folder: str) -> None:
    """Let a server of its own replay up to the target, and end it. Only its socket leads to it. Raises RewindError."""
    unit = Unit(RECOVERY)
    if not unit.works:
        unit.start(
            server_command(member, folder),
            "--service-type=exec", "--property=RuntimeDirectory=arches-rewind", "--property=RuntimeDirectoryMode=0700",
            "--property=KillSignal=SIGINT", "--property=TimeoutStopSec=1h",
        )  # fmt: skip
    while not is_promoted():
        if not unit.works:
            raise RewindError(why_not_arrived(unit.said()))
        time.sleep(POLL_S)
    # What pgBackRest wrote for the recovery would be read again by the next server.
    query("ALTER SYSTEM RESET ALL")
    query("CHECKPOINT")
    unit.stop()


def server_command(member: PatroniConfig, folder: str) -> list[str]:
    """How the server is called. It has the settings of the time of the backup, with these instead."""
    settings = {
        "hba_file": f"{folder}/pg_hba.conf",
        "ident_file": f"{folder}/pg_ident.conf",
        "listen_addresses": "",
        "unix_socket_directories": SOCKETS,
        "port": "5432",
        "ssl": "off",
        "synchronous_standby_names": "",
        # Off: so it does not matter that the settings may be smaller than they were at the target.
        "hot_standby": "off",
        # On: the new timeline's history is archived by whoever begins it, or never.
        "archive_mode": "on",
        "archive_command": f"pgbackrest --stanza={STANZA} --pg1-path={folder} archive-push %p",
        "restore_command": f'pgbackrest --stanza={STANZA} --pg1-path={folder} archive-get %f "%p"',
    }
    return [f"{member.bin}/postgres", "-D", folder, *(w for k, v in settings.items() for w in ("-c", f"{k}={v}"))]


def query(sql: str) -> str:
    """One value from the restored server. Raises RewindError."""
    psql = ["psql", "-XAtq", "-h", SOCKETS, "-p", "5432", "-U", "postgres", "-c", sql]
    done = run(["runuser", "-u", "postgres", "--", *psql])
    if done.returncode:
        raise RewindError(f"The restored server answers: {done.stderr.strip()}")
    return done.stdout.strip()


def is_promoted() -> bool:
    """Whether the recovery has ended, and well: a server that misses its target ends instead."""
    with contextlib.suppress(RewindError):
        return query("SELECT pg_is_in_recovery()") == "f"
    return False


def why_not_arrived(said: str) -> str:
    """Why a recovery has ended before its target."""
    lines = [line.strip() for line in said.splitlines() if re.search("FATAL|PANIC|ERROR|last completed", line)]
    shown = " ".join(lines[-4:]) or said.strip()[-500:]
    if "before configured recovery target was reached" in said:
        return (
            f"The archive ends before the target ({shown}). If the store was away, run the same command again. If the"
            " target is wrong, put the state before back with -e undo=true and choose another; a name, or an xid without"
            " a known time, that is older than the backup needs an older one: -e set=LABEL."
        )
    return f"The recovery failed ({shown}). See journalctl -u {RECOVERY}, then run the same command again."


# Data directories


def look(member: PatroniConfig, room_for: int) -> dict[str, t.Any]:
    """What an earlier rewind has left here, whether there is room, and whose Patroni lives. Raises ConfigError."""
    free, needed = shutil.disk_usage(os.path.dirname(member.data)).free, room_for + SPARE
    short = f"needs {amount(needed)} beside its data and has {amount(free)} free" if room_for and free < needed else ""
    return {"before": member.kept("before"), "short": short, "alive": member.alive()}


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


def back(member: PatroniConfig) -> bool:
    """What was set aside last is the data directory again, if there is none."""
    for name in (RESTORE, RECOVERY):
        Unit(name).stop()
    for folder in member.kept("rewound"):
        remove(folder)
    before = member.kept("before")
    if os.path.exists(member.data) or not before:
        return False
    os.rename(before[-1], member.data)
    return True


def forget(member: PatroniConfig) -> bool:
    """What was set aside is gone."""
    before = member.kept("before")
    for folder in before:
        remove(folder)
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
        required_if=[["step", "aside", ["mark"]], ["step", "restore", ["mark", "target"]], ["step", "swap", ["mark"]]],
        supports_check_mode=True,
    )
    params = module.params
    steps: dict[str, Callable[[PatroniConfig], t.Any]] = {
        "look": lambda member: look(member, params["room_for"]),
        "restore": lambda member: restore(member, params["mark"], params["target"]),
        "aside": lambda member: {"changed": aside(member, params["mark"])},
        "swap": lambda member: {"changed": swap(member, params["mark"])},
        "back": lambda member: {"changed": back(member)},
        "forget": lambda member: {"changed": forget(member)},
    }
    if module.check_mode and params["step"] != "look":
        module.exit_json(changed=True)
    try:
        result = {"changed": False} | steps[params["step"]](PatroniConfig.read())
    except (RewindError, ConfigError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
