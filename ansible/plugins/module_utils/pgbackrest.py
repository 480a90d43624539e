"""pgBackRest as the modules call it: what the store has, and what its errors mean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import typing as t

STANZA = "arches"
# How it says that the store cannot be reached. Whatever else it says does not get better by waiting.
AWAY = re.compile(r"HostConnectError|ServiceError|timeout|unexpected eof|HTTP request failed with 5\d\d", re.IGNORECASE)
TELLING = re.compile(r"Error\b|ERROR|FATAL|PANIC")


class StoreError(Exception):
    """What is wrong with the store and what to do about it."""


def info() -> list[dict[str, t.Any]]:
    """What the store has. Raises StoreError."""
    done = subprocess.run(
        ["runuser", "-u", "postgres", "--", "pgbackrest", f"--stanza={STANZA}", "--output=json", "info"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    if done.returncode:
        raise StoreError(explain(done.stderr + done.stdout))
    found: list[dict[str, t.Any]] = json.loads(done.stdout)
    # The exit status does not tell whether the store could be asked.
    troubles = [repo["status"]["message"] for entry in found for repo in entry["repo"] if entry["status"]["code"] == 99]
    if troubles:
        raise StoreError(explain("\n".join(troubles)))
    return found


def history(folder: str, timeline: int) -> str:
    """A timeline's history file, from a data directory or from the archive. Raises StoreError when it is in neither."""
    name = f"{timeline:08X}.history"
    own = f"{folder}/pg_wal/{name}"
    if timeline == 1:
        return ""
    if os.path.exists(own):
        with open(own, encoding="utf-8") as stream:
            return stream.read()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.chown(scratch, "postgres")
        words = [f"--stanza={STANZA}", f"--pg1-path={folder}", "archive-get", name, f"{scratch}/{name}"]
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", "pgbackrest", *words],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        if done.returncode == 1:
            raise StoreError(
                f"The archive knows no timeline {timeline}. Choose another: -e timeline=N (`pgbackrest info`)."
            )
        if done.returncode:
            raise StoreError(explain(done.stderr + done.stdout))
        with open(f"{scratch}/{name}", encoding="utf-8") as stream:
            return stream.read()


def explain(said: str) -> str:
    """Why pgBackRest failed, from what it wrote, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if TELLING.search(line)), (lines or ["it said nothing"])[-1])[:300].rstrip(
        ":"
    )
    if "No space left" in said:
        return f"The disk is full ({reason}). Make room, then run the same command again."
    if "403" in said:
        return f"The store refuses the account ({reason}). Compare vault_s3_* with the store's accounts; then site.yml."
    if "CryptoError" in said or "FormatError" in said or "ChecksumError" in said:
        return f"What the store has cannot be read ({reason}). Is vault_backup_passphrase the one it was written with?"
    return (
        f"The store gives nothing ({reason}). Is it up, and can it be reached from here (`pgbackrest info`)? "
        "Then run the same command again."
    )
