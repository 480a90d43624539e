"""The fleet's ssh key, the exact list of its hosts' keys, and a client configuration that uses both."""

import os
from collections.abc import Iterable
from pathlib import Path

from .machine import Record
from .system import run, write_file


class Keys:
    """`id_ed25519`, `known_hosts` and `config` in `ssh/` below `state_dir`; they belong to the checkout's owner."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.folder = state_dir / "ssh"
        self.private = self.folder / "id_ed25519"

    def ensure(self) -> None:
        """Make the key pair unless it is there. Under sudo all of it goes to the owner of the folder above."""
        above = next(path for path in self.state_dir.parents if path.is_dir()).stat()
        for folder in (self.state_dir, self.folder):
            if not folder.is_dir():
                folder.mkdir(parents=True, mode=0o700)
                os.chown(folder, above.st_uid, above.st_gid)
            folder.chmod(0o700)  # a release built before the first machine has made it wider
        if not self.private.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "arches", "-f", self.private)
            for path in (self.private, self.private.with_suffix(".pub")):
                os.chown(path, above.st_uid, above.st_gid)

    def public(self) -> str:
        """Return the public key as one line."""
        return self.private.with_suffix(".pub").read_text().strip()

    def write_known_hosts(self, records: Iterable[Record]) -> None:
        """Name exactly these machines, by address and by name, in `known_hosts` and `config`."""
        if not self.folder.is_dir():
            return
        records = [record for record in records if record.host_key]
        known = "".join(f"{record.address},{record.name} {record.host_key}\n" for record in records)
        config = "".join(f"Host {record.name}\n  HostName {record.address}\n" for record in records)
        config += (
            f'Host *\n  User ops\n  IdentityFile "{self.private}"\n  IdentitiesOnly yes\n'
            f'  UserKnownHostsFile "{self.folder / "known_hosts"}"\n  StrictHostKeyChecking yes\n'
        )
        owner = self.folder.stat()
        for name, text in (("known_hosts", known), ("config", config)):
            write_file(self.folder / name, text, mode=0o600, owner=(owner.st_uid, owner.st_gid))
