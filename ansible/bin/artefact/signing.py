"""Signatures by minisign, the program that the hosts check them with."""

import fcntl
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import ReleaseError

KEY_VARIABLE = "ARCHES_RELEASE_KEY"


def minisign(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run minisign, which gets no terminal.

    :raises ReleaseError: when it is not installed.
    """
    try:
        return subprocess.run(["minisign", *arguments], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("minisign was not found: run `make environment`, which installs it.") from None


@dataclass(frozen=True)
class Signer:
    """Signs with one key, and believes only what the fleet would.

    :param public: the fleet's public key, one line of Base64.
    :param secret: the secret key, one line of Base64, without a password; empty where nothing has to be signed.
    """

    public: str
    secret: str = field(repr=False)

    @classmethod
    def from_environment(cls, public: str) -> "Signer":
        """The signer whose secret key is in ARCHES_RELEASE_KEY: the key's file, or only its last line."""
        lines = os.environ.get(KEY_VARIABLE, "").split("\n")
        return cls(public.strip(), next((line.strip() for line in reversed(lines) if line.strip()), ""))

    def require_secret(self) -> None:
        """Before work that would be for nothing without a key. Raises ReleaseError."""
        if not self.secret:
            raise ReleaseError(
                f"{KEY_VARIABLE} is empty, and nothing unsigned is published: put the secret half of the environment's "
                "release.pub there, or into the vault as vault_release_key."
            )

    def sign(self, file: Path, comment: str) -> None:
        """Write ``<file>.minisig``; equal files and comments get equal signatures.

        :param comment: is signed too, and shown by whoever checks the file.
        :raises ReleaseError: when the key is none, has a password, or is not the one that the fleet trusts.
        """
        self.require_secret()
        arguments = ("-S", "-s", "/dev/stdin", "-c", "minisign", "-t", comment, "-x", signature(file), "-m", file)
        done = minisign(*arguments, stdin=f"untrusted comment: key\n{self.secret}\n")
        if done.returncode:
            raise ReleaseError(
                f"{KEY_VARIABLE} is no secret key of minisign without a password: "
                "make one with `python ansible/bin/release.py new-key release.key`, and commit its release.pub."
            )
        if not self.trusts(file):
            signature(file).unlink()
            raise ReleaseError(
                f"{KEY_VARIABLE} is not the secret half of release.pub ({self.public}): "
                "no host would take what it signs. Put the right one there."
            )

    def trusts(self, file: Path) -> bool:
        """Whether the fleet's key has signed the file as it is now."""
        return minisign("-V", "-q", "-P", self.public, "-x", signature(file), "-m", file).returncode == 0


def signature(file: Path) -> Path:
    """Where the signature of a file lies."""
    return file.with_name(f"{file.name}.minisig")


def new_key(file: Path) -> bool:
    """Make a key without a password: ``file`` (0600) and ``<file without suffix>.pub``, one line of Base64 each.

    :returns: false when there was one already; it is kept.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".key-", dir=file.parent) as folder,
        (file.parent / ".release.lock").open("a") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return False
        secret, public = Path(folder) / "secret", Path(folder) / "public"
        done = minisign("-G", "-W", "-s", secret, "-p", public)
        if done.returncode:
            raise ReleaseError(f"minisign made no key: {done.stderr.strip()}")
        for path in (secret, public):
            path.write_text(path.read_text().splitlines()[-1] + "\n")
        # The secret half last: who finds it, finds both.
        public.replace(file.with_suffix(".pub"))
        secret.replace(file)
    return True
