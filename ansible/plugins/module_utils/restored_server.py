"""A Postgres that is restored to an earlier moment beside whatever else the host does.

The work is done by transient units, so it goes on when the connection to the host does not: whoever asks a second time
waits for the same work. Each step finds out from the data directory what is done already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import time
import typing as t
from collections.abc import Mapping, Sequence

from ansible.module_utils.pgbackrest import AWAY, STANZA, explain

POLL_S = 0.5
# A store may be away for so long before that is an error; work that went on for a while began a new count.
PATIENCE_S, A_WHILE_S = 600, 120
# 1: the archive has no such file. Nothing else must be taken for the archive's end; above 125 Postgres gives up.
FETCH = 'pgbackrest {options} archive-get %f "%p"; s=$?; test $s -lt 2 || s=255; exit $s'


class RestoreError(Exception):
    """What is wrong and what to do about it."""


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its status."""
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, "LC_ALL": "C"}
    )


class Unit:
    """A transient unit of the database's user."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, command: Sequence[str], *properties: str) -> None:
        """Start it anew; its process runs when this returns. Raises RestoreError."""
        self.stop()
        words = ["systemd-run", "--quiet", f"--unit={self.name}", "--uid=postgres", "--gid=postgres"]
        words += [f"--property={one}" for one in ("Type=exec", "RemainAfterExit=yes", *properties)]
        done = run([*words, "--", *command])
        if done.returncode:
            raise RestoreError(f"{self.name} cannot be started: {done.stderr.strip()}")

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
        run(["journalctl", "--sync"])
        return run(["journalctl", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={self.state()['InvocationID']}"]).stdout

    def stop(self) -> None:
        """It is gone, its process ended as it should."""
        run(["systemctl", "stop", self.name])
        run(["systemctl", "reset-failed", self.name])


class Patience:
    """Tells a store that may come back from a failure that stays."""

    def __init__(self) -> None:
        self.since = self.began = time.monotonic()

    def begin(self) -> None:
        """An attempt begins."""
        self.began = time.monotonic()

    def bears(self, said: str) -> bool:
        """Whether another attempt makes sense after one that ended with these words."""
        now = time.monotonic()
        if now - self.began > A_WHILE_S:
            self.since = now
        return bool(AWAY.search(said)) and now - self.since < PATIENCE_S


@dataclasses.dataclass(frozen=True)
class RestoredServer:
    """One server; nobody reaches it but root and the database's user, by its socket.

    :param name: of its units and of the folder of its socket below /run.
    :param folder: its data directory.
    :param bin_dir: where the programs of its version are.
    :param options: how pgBackRest is called here, besides the stanza and the folder; and `restoring`, for a restore.
    :param settings: of the server; all others are those of the time of the backup.
    :param properties: of its units; and `serving_properties`, of the server's.
    """

    name: str
    folder: str
    bin_dir: str
    options: tuple[str, ...] = ()
    restoring: tuple[str, ...] = ()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    properties: tuple[str, ...] = ()
    serving_properties: tuple[str, ...] = ()

    @property
    def sockets(self) -> str:
        """Folder of its socket."""
        return f"/run/{self.name}"

    @property
    def copying(self) -> Unit:
        """The unit that restores."""
        return Unit(f"{self.name}-restore")

    @property
    def serving(self) -> Unit:
        """The unit of the server."""
        return Unit(self.name)

    def control(self) -> dict[str, str]:
        """What pg_controldata says; nothing when there is no data directory, or half of one."""
        done = run([f"{self.bin_dir}/pg_controldata", "-D", self.folder])
        pairs = (line.partition(":") for line in done.stdout.splitlines())
        return {key: value.strip() for key, _, value in pairs} if done.returncode == 0 else {}

    @property
    def is_restored(self) -> bool:
        """Whether every file of the backup is there: pgBackRest gives pg_control its name at the very end."""
        return bool(self.control()) and not os.path.exists(f"{self.folder}/backup.manifest")

    @property
    def has_arrived(self) -> bool:
        """Whether it was promoted at its target: a server that misses its target ends and stays in recovery."""
        return self.is_restored and not os.path.exists(f"{self.folder}/recovery.signal")

    def restore(self, target: Mapping[str, t.Any]) -> None:
        """All files of the backup are there; what an interrupted try has brought is kept. Raises RestoreError."""
        patience = Patience()
        while self.copying.works or not self.is_restored:
            patience.begin()
            if not self.copying.works:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                shutil.chown(self.folder, "postgres", "postgres")
                self.copying.start(self._restore_command(target), *self.properties)
            while self.copying.works:
                time.sleep(POLL_S)
            if self.copying.state()["Result"] != "success" and not patience.bears(self.copying.said()):
                raise RestoreError(explain(self.copying.said()))
        self.copying.stop()

    def arrive(self) -> None:
        """It has replayed all WAL up to its target, was promoted, and serves. Raises RestoreError."""
        patience = Patience()
        while not self.serves:
            patience.begin()
            if not self.serving.works:
                self.serving.start(
                    self._server_command(),
                    f"RuntimeDirectory={self.name}", "RuntimeDirectoryMode=0700", "KillSignal=SIGINT",
                    "TimeoutStopSec=1h", *self.properties, *self.serving_properties,
                )  # fmt: skip
            while self.serving.works and not self.serves:
                time.sleep(POLL_S)
            if not self.serving.works and not patience.bears(self.serving.said()):
                raise RestoreError(self._why_not_arrived(self.serving.said()))

    @property
    def serves(self) -> bool:
        """Whether it is a database of its own by now."""
        with contextlib.suppress(RestoreError):
            return self.serving.works and self.query("SELECT pg_is_in_recovery()") == "f"
        return False

    def query(self, sql: str) -> str:
        """One value. Raises RestoreError."""
        psql = ["psql", "-XAtq", "-h", self.sockets, "-p", "5432", "-U", "postgres", "-c", sql]
        done = run(["runuser", "-u", "postgres", "--", *psql])
        if done.returncode:
            raise RestoreError(f"The restored server answers: {done.stderr.strip()}")
        return done.stdout.strip()

    def stop(self) -> None:
        """Neither part of it runs any more."""
        self.copying.stop()
        self.serving.stop()

    def _pgbackrest(self, *words: str) -> list[str]:
        return [*self.options, f"--stanza={STANZA}", f"--pg1-path={self.folder}", *words]

    def _restore_command(self, target: Mapping[str, t.Any]) -> list[str]:
        before = [] if target["kind"] == "name" else ["--target-exclusive"]
        return [
            "/usr/bin/pgbackrest", *self._pgbackrest(*self.restoring, "--delta"),
            # Only what goes wrong: the words of it decide what is done.
            "--log-level-console=warn", "--log-level-stderr=off",
            f"--set={target['backup']}", f"--type={target['kind']}", f"--target={target['value']}", *before,
            f"--target-timeline={target['timeline']}", "--target-action=promote", "restore",
        ]  # fmt: skip

    def _server_command(self) -> list[str]:
        settings = {
            "hba_file": f"{self.folder}/pg_hba.conf",
            "ident_file": f"{self.folder}/pg_ident.conf",
            "listen_addresses": "",
            "unix_socket_directories": self.sockets,
            "port": "5432",
            "ssl": "off",
            "synchronous_standby_names": "",
            # Off: so it does not matter that the settings may be smaller than they were at the target.
            "hot_standby": "off",
            "restore_command": FETCH.format(options=" ".join(self._pgbackrest())),
            **self.settings,
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [f"{self.bin_dir}/postgres", "-D", self.folder, *words]

    def _why_not_arrived(self, said: str) -> str:
        lines = [line.strip() for line in said.splitlines() if re.search("FATAL|PANIC|ERROR|last completed", line)]
        shown = " ".join(lines[-4:])[:600] or said.strip()[-500:]
        if AWAY.search(said):
            return str(explain(said))
        if "before configured recovery target was reached" in said:
            return (
                f"The archive ends before the target ({shown}). Choose an earlier one; a name, or an xid without a"
                " known time, that is older than the backup needs an older backup: -e set=LABEL."
            )
        return f"The recovery failed ({shown}). See `journalctl -u {self.name}`, then run the same command again."
