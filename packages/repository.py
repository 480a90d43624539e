#!/usr/bin/env python3
"""Make the fleet's signed apt repository as one archive: packages/repository.py --into FOLDER --key FILE DEB ...

Writes ``apt-<version>.tar.gz``, ``apt.json`` (which one is the newest, in the form of a release) and ``apt.asc`` (the
key that hosts trust) into the folder. The version is a hash of packages and key: nothing new means nothing to do, and
a failure leaves what was there. With ``--new-key FILE`` it only makes a signing key.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

SUITE = "arches"
KEEP = 2


class RepositoryError(Exception):
    """The repository cannot be made; the message is one sentence that names the fix."""


def run(*argv: str | Path, folder: Path | None = None, stdin: bytes | None = None, home: Path | None = None) -> bytes:
    """Output of a program. Raises RepositoryError with its own words."""
    program = str(argv[0])
    if shutil.which(program) is None:
        raise RepositoryError(f"{program} was not found: run `make environment`, which installs it.")
    environment = {**os.environ, "GNUPGHOME": str(home)} if home else None
    done = subprocess.run(
        [str(word) for word in argv], cwd=folder, input=stdin, capture_output=True, env=environment, check=False
    )
    if done.returncode:
        raise RepositoryError(f"{program} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


class Signer:
    """Signs with one secret key, in a keyring of its own that is gone afterwards.

    :param home: an empty directory.
    :param key: the secret key, ASCII-armoured.
    """

    def __init__(self, home: Path, key: bytes) -> None:
        home.chmod(0o700)
        self._home = home
        try:
            self.gpg("--import", stdin=key)
        except RepositoryError as error:
            raise RepositoryError(
                "the signing key (vault_apt_repository_key) is no ASCII-armoured secret key. "
                "Make one: packages/repository.py --new-key FILE"
            ) from error
        listed = self.gpg("--list-secret-keys", "--with-colons").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))

    def gpg(self, *arguments: str | Path, stdin: bytes | None = None) -> bytes:
        """Run gpg without a terminal. Raises RepositoryError."""
        return run("gpg", "--batch", "--quiet", "--no-tty", *arguments, stdin=stdin, home=self._home)

    def public(self) -> bytes:
        """The public half, ASCII-armoured."""
        return self.gpg("--armor", "--export", self.fingerprint)

    def close(self) -> None:
        """End the agent that gpg has started."""
        run("gpgconf", "--kill", "all", home=self._home)


def new_key() -> bytes:
    """A secret key for signing, ASCII-armoured. Raises RepositoryError."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o700)
        gpg: list[str | Path] = ["gpg", "--batch", "--quiet", "--no-tty", "--passphrase", ""]
        run(*gpg, "--quick-generate-key", "Arches packages", "ed25519", "sign", "never", home=Path(home))
        key = run(*gpg, "--armor", "--export-secret-keys", home=Path(home))
        run("gpgconf", "--kill", "all", home=Path(home))
        return key


def version_of(packages: Sequence[Path], fingerprint: str) -> str:
    """Hash of what the repository would hold."""
    found = hashlib.sha256(f"{fingerprint} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n".encode())
    for path in sorted(packages, key=lambda path: path.name):
        found.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def lay_out(packages: Sequence[Path], signer: Signer, root: Path) -> None:
    """Make the repository's tree: pool/, and its indexes signed. Raises RepositoryError."""
    (root / "pool").mkdir()
    for path in packages:
        shutil.copyfile(path, root / "pool" / path.name)
    index = run("apt-ftparchive", "packages", "pool", folder=root)
    (root / "Packages").write_bytes(index)
    (root / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    options = [f"APT::FTPArchive::Release::{key}={SUITE}" for key in ("Origin", "Label", "Suite", "Codename")]
    options = [word for option in options for word in ("-o", option)]
    (root / "Release").write_bytes(run("apt-ftparchive", *options, "release", ".", folder=root))
    signer.gpg("--output", root / "InRelease", "--clearsign", root / "Release")


def publish(packages: Sequence[Path], key: bytes, into: Path) -> dict[str, object]:
    """Make the repository unless it is there already.

    :returns: name, version, archive (file name), sha256, built (whether anything was done).
    :raises RepositoryError: naming the fix; what was there is as it was.
    """
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    pointer = into / "apt.json"
    known = json.loads(pointer.read_text()) if pointer.exists() else {}
    # gpg's socket has to have a short path, so its home is not beside the rest.
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory(prefix=".apt-", dir=into) as scratch:
        signer = Signer(Path(home), key)
        try:
            version = version_of(packages, signer.fingerprint)
            archive = into / f"apt-{version}.tar.gz"
            if known.get("version") == version and archive.exists() and (into / "apt.asc").exists():
                return {**known, "built": False}
            root = Path(scratch) / "tree"
            root.mkdir(mode=0o755)
            lay_out(packages, signer, root)
            (Path(scratch) / "apt.asc").write_bytes(signer.public())
        finally:
            signer.close()
        # Packages are compressed already.
        with tarfile.open(Path(scratch) / "archive", "w:gz", compresslevel=1) as tar:
            tar.add(root, ".")
        digest = hashlib.sha256((Path(scratch) / "archive").read_bytes()).hexdigest()
        newest: dict[str, object] = {"name": "apt", "version": version, "archive": archive.name, "sha256": digest}
        (Path(scratch) / "apt.json").write_text(json.dumps(newest, indent=1) + "\n")
        for name, target in (("archive", archive), ("apt.asc", into / "apt.asc"), ("apt.json", pointer)):
            (Path(scratch) / name).replace(target)
    for old in sorted(into.glob("apt-*.tar.gz"), key=lambda path: path.stat().st_mtime)[:-KEEP]:
        old.unlink()
    return {**newest, "built": True}


def main() -> int:
    """Command line; prints one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path)
    parser.add_argument("--key", help="file with the secret key; - reads it from standard input")
    parser.add_argument("--new-key", type=Path, metavar="FILE")
    parser.add_argument("packages", nargs="*", type=Path)
    options = parser.parse_args()
    try:
        if options.new_key:
            with open(os.open(options.new_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(new_key())
            return 0
        if not options.into or not options.key or not options.packages:
            parser.error("--into, --key and at least one package are needed")
        key = sys.stdin.buffer.read() if options.key == "-" else Path(options.key).read_bytes()
        print(json.dumps(publish(options.packages, key, options.into)))
    except RepositoryError as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"packages: {error.filename}: {error.strerror}. The repository is as it was.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
