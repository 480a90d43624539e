"""The copy: a scratch server that only this user reaches, dropped when it has said what it knows."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Self

from arches_prover.errors import NotProven
from arches_prover.settings import DATA, MIB, POSTGRES, SCRATCH, SOCKETS, Settings
from arches_prover.store import Backup, short

# Not beside the copy: when its disk is full, this must still be said.
LOG = SOCKETS / "postgres.log"


def room(settings: Settings, backup: Backup, free_bytes: int) -> None:
    """There is room for the copy.

    :raises NotProven: when there is not, with the figures.
    """
    needed = backup.size_bytes + settings.spare_mb * MIB
    if free_bytes < needed:
        raise NotProven(
            f"{SCRATCH} has {free_bytes // MIB} MiB free, the copy needs {needed // MIB} MiB: "
            "make room there, or mount a larger disk"
        )


def drop() -> None:
    """Remove the copy; the folder itself may be a disk of its own and stays."""
    for entry in SCRATCH.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def server_settings(settings: Settings, newest_wal: str) -> dict[str, str]:
    """Postgres of the copy. The settings of the fleet came with the backup and are left out."""
    return {
        "listen_addresses": "",
        "unix_socket_directories": str(SOCKETS),
        "hot_standby": "off",
        "archive_mode": "off",
        "restore_command": f'{sys.executable} -m arches_prover.main wal {newest_wal} "%f" "%p"',
        # It is thrown away.
        "fsync": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "restart_after_crash": "off",
        "max_connections": "20",
        "shared_buffers": f"{settings.memory_mb // 4}MB",
        "maintenance_work_mem": f"{settings.memory_mb // 8}MB",
        "max_wal_size": f"{max(settings.spare_mb // 2, 32)}MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }


def configure(settings: Settings, backup: Backup) -> None:
    """Write the copy's own settings over those that were restored."""
    lines = [f"{key} = '{value}'" for key, value in server_settings(settings, backup.newest_wal).items()]
    (DATA / "postgresql.conf").write_text("\n".join(lines) + "\n")
    (DATA / "postgresql.auto.conf").write_text("")
    (DATA / "pg_hba.conf").write_text("local all postgres peer\n")
    (DATA / "pg_ident.conf").write_text("")


class Copy:
    """The scratch server, as long as the ``with`` lasts."""

    def __enter__(self) -> Self:
        with LOG.open("ab") as log:
            self.server = subprocess.Popen([POSTGRES / "postgres", "-D", DATA], stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        # Without a checkpoint: nothing of it is kept.
        self.server.send_signal(signal.SIGQUIT)
        self.server.wait()

    def wait_until_promoted(self) -> None:
        """Until all WAL is replayed and the copy takes connections.

        :raises NotProven: when the server ends instead, with its own words.
        """
        while subprocess.run([POSTGRES / "pg_isready", "-q", "-h", SOCKETS], check=False).returncode:
            if self.server.poll() is not None:
                words = LOG.read_text(errors="replace")
                sys.stderr.write(words[-10_000:])
                raise NotProven(f"the copy does not start: {last_errors(words)}")
            time.sleep(0.2)


def last_errors(log: str) -> str:
    """The errors at the end of a server's log, in a line; the first of them is mostly the reason."""
    errors = re.findall(r"(?:ERROR|FATAL|PANIC):\s*+(?!the database system is starting up)(.*)", log)
    return "; ".join(errors[-3:])[:600] or "it said nothing"


def ask(database: str, query: str, /, **values: str) -> Any:
    """The JSON that a query of one value returns; ``:'name'`` in it stands for one of the values.

    :raises NotProven: when Postgres refuses it.
    """
    given = [word for key, value in values.items() for word in ("-v", f"{key}={value}")]
    done = subprocess.run(
        ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", SOCKETS, "-d", database, *given],
        input=query, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise NotProven(short(done.stderr))
    return json.loads(done.stdout or "null")
