"""A folder of published releases. A release is published once: its bytes never change under its name.

- ``api-v1.4.0.tar.gz``: the archive
- ``api-v1.4.0.tar.gz.minisig``: its signature
- ``api-v1.4.0.json``: its record, what hosts are asked for; whoever finds it, finds the other two
- ``api.json``: the record of the one that was made last (working trees only)
"""

import contextlib
import errno
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ReleaseError
from .build import Recipe, lay_out, pack, sha256
from .signing import Signer, signature

KEEP = 5


@dataclass(frozen=True)
class Store:
    """The folder, and whose signatures count in it."""

    folder: Path
    signer: Signer

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One build at a time: a second run waits, and then finds what the first one made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{self.folder}: another release is being built; waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def record(self, name: str, version: str = "") -> dict[str, Any]:
        """What is known of a release (without a version: of the one made last); empty when there is none."""
        path = self.folder / f"{name}{f'-{version}' if version else ''}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def whole(self, record: dict[str, Any]) -> bool:
        """Whether the archive is the one that was published; a cut disk or a careless hand may have changed it."""
        archive = self.folder / str(record.get("archive"))
        return archive.exists() and sha256(archive) == record["sha256"]

    def make(self, recipe: Recipe, version: str, commit: str = "") -> dict[str, Any]:
        """Build a release and publish it; the same bytes may be published again.

        :param commit: that it is built from; empty for a working tree.
        :returns: its record: name, version, commit, archive (file name), sha256, size and space on a host (bytes).
        :raises ReleaseError: also when other bytes are published under this version; nothing has changed then.
        """
        self.signer.require_secret()
        # Beside the result, so that it gets its name by a rename. The tree's own name never gets into the archive.
        with tempfile.TemporaryDirectory(prefix=".build-", dir=self.folder) as scratch:
            manifest = lay_out(recipe, version, commit, Path(scratch))
            archive = Path(scratch) / f"{recipe.name}-{version}.tar.gz"
            pack(Path(scratch) / "tree", archive)
            record = {
                **{key: manifest[key] for key in ("name", "version", "commit", "space")},
                "archive": archive.name,
                "sha256": sha256(archive),
                "size": archive.stat().st_size,
            }
            known = self.record(recipe.name, version)
            if known and known["sha256"] != record["sha256"]:
                raise ReleaseError(
                    f"{self.folder}/{archive.name} is published with SHA-256 {known['sha256']}, and this build has "
                    f"{record['sha256']}. A published version never changes: give what is new a new version."
                )
            self.signer.sign(archive, f"{recipe.name} {version}")
            signature(archive).replace(signature(self.folder / archive.name))
            archive.replace(self.folder / archive.name)
        self._write(f"{recipe.name}-{version}.json", record)
        return record

    def newest(self, recipe: Recipe, label: str) -> dict[str, Any]:
        """The release of a working tree, made unless it is there; old ones go.

        :param label: begins the version, ``<label>+<hash of the content>``.
        :returns: its record, and ``built``: whether anything was made.
        :raises ReleaseError: naming the fix.
        """
        version = f"{label}+{recipe.digest()}"
        with self.alone():
            record = self.record(recipe.name, version)
            built = not self.whole(record)
            if built:
                record = self.make(recipe, version)
            archive = self.folder / record["archive"]
            # A fleet with a new key wants new signatures, of the same bytes.
            if not self.signer.trusts(archive):
                self.signer.sign(archive, f"{recipe.name} {version}")
            if record != self.record(recipe.name):
                self._write(f"{recipe.name}.json", record)
            os.utime(archive)
            self._forget(recipe.name)
        return {**record, "built": built}

    def _write(self, name: str, record: dict[str, Any]) -> None:
        fresh = self.folder / f".{name}.new"
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.replace(self.folder / name)

    def _forget(self, name: str) -> None:
        """Keep the last few that were used."""
        archives = sorted(self.folder.glob(f"{name}-*.tar.gz"), key=lambda path: path.stat().st_mtime)
        for old in archives[:-KEEP]:
            # The record first: what has none was never published.
            old.with_name(old.name.replace(".tar.gz", ".json")).unlink(missing_ok=True)
            signature(old).unlink(missing_ok=True)
            old.unlink()


def sentence(error: OSError) -> str:
    """What the operating system refused, and what to do."""
    fix = " Free 1 GiB there." if error.errno == errno.ENOSPC else ""
    return f"{error.filename or 'builder'}: {error.strerror}.{fix} What was published is as it was."
