"""Sealed bundles of what git does not hold and a rebuild needs (docs/escrow.md). For the controller only.

A bundle is a tar in the age format that any of its recipients can open. In it: `README`, `manifest.json` (environment,
time, recipients, SHA-256 by name) and the contents by name. In clear it exists in memory only: what is
written to a disk is sealed.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyrage
from pyrage import x25519

README = """\
Everything that the environment {environment} of Arches had and git does not hold, on {made}.

vault/<name>          value of each secret of inventories/{environment}/group_vars/all/vault.yml
vault_password/<id>   what opens that file
state/<path>          of a local environment instead: files of inventories/{environment}/.state
manifest.json         SHA-256 of each of these, and for whom the bundle was sealed

How to put it back: docs/escrow.md.
"""


class EscrowError(ValueError):
    """What is wrong with a bundle, a key or an environment, and what to do."""


@dataclass(frozen=True)
class Bundle:
    """What is sealed: contents by name, of which environment, when (ISO 8601, UTC), and for whom (public keys)."""

    environment: str
    made: str
    recipients: Sequence[str]
    contents: Mapping[str, bytes]


def wrong_recipients(recipients: Sequence[str]) -> Iterator[str]:
    """What is wrong with a list of recipients, and what to write: texts that follow the name of the list."""
    for recipient in recipients:
        try:
            x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            yield f"has `{recipient}`. Write the public key that age-keygen printed (age1...)."
    if len(set(recipients)) < 2:
        yield "has fewer than two different keys, so that losing one loses everything. Name two people's."


def seal(bundle: Bundle) -> bytes:
    """The bundle as an age file. Raises EscrowError if its recipients are not two people's keys."""
    wrong = list(wrong_recipients(bundle.recipients))
    if wrong:
        raise EscrowError(f"`escrow_recipients` {' '.join(wrong).removesuffix('.')}")
    files = {name: digest(content) for name, content in bundle.contents.items()}
    facts = {"environment": bundle.environment, "made": bundle.made, "recipients": list(bundle.recipients)}
    texts = {
        "README": README.format(environment=bundle.environment, made=bundle.made),
        "manifest.json": json.dumps({**facts, "files": files}, indent=2) + "\n",
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in ({name: text.encode() for name, text in texts.items()} | dict(bundle.contents)).items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            member.mtime = int(datetime.datetime.fromisoformat(bundle.made).timestamp())
            tar.addfile(member, io.BytesIO(content))
    sealed: bytes = pyrage.encrypt(stream.getvalue(), [x25519.Recipient.from_str(key) for key in bundle.recipients])
    return sealed


def unseal(sealed: bytes, identity: x25519.Identity) -> Bundle:
    """Open a bundle. Raises EscrowError if the key does not open it, or it holds something else than it says."""
    try:
        plain = pyrage.decrypt(sealed, [identity])
    except pyrage.DecryptError as error:
        raise EscrowError("it does not open: it was sealed for other keys, or it is damaged") from error
    try:
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            held = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}
        manifest = json.loads(held.pop("manifest.json"))
        held.pop("README")
        bundle = Bundle(manifest["environment"], manifest["made"], manifest["recipients"], held)
        files = manifest["files"]
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise EscrowError("it opens, but is not a bundle of `make escrow`") from error
    if files != {name: digest(content) for name, content in held.items()}:
        raise EscrowError("it opens, but its files are not those of its manifest")
    return bundle


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def differences(held: Bundle, now: Bundle) -> Iterator[str]:
    """What a bundle lacks, or has otherwise than the environment now; names only, nothing of a content."""
    if held.environment != now.environment:
        yield f"it is of the environment {held.environment}, not of {now.environment}"
        return
    if set(held.recipients) != set(now.recipients):
        yield "it was sealed for other recipients than `escrow_recipients` names now"
    for name in sorted(held.contents.keys() | now.contents.keys()):
        if name not in held.contents:
            yield f"{name} is missing in it"
        elif name not in now.contents:
            yield f"{name} is only in it: put it back from there, or seal a new bundle if it is not used any more"
        elif held.contents[name] != now.contents[name]:
            yield f"{name} is outdated in it"


def local_files(state: Path) -> dict[str, bytes]:
    """What a local environment cannot draw again, by name: its secrets, keys and the CA. Raises EscrowError."""
    if not (state / "ca.key").exists():
        raise EscrowError(f"{state}/ca.key is missing: the environment has no secrets yet. Run `make up` first")
    # Public halves, too: elsewhere git has them.
    found = [path for ending in ("key", "crt", "pub") for path in state.glob(f"*.{ending}")]
    found += (state / "secrets").rglob("*")
    return {f"state/{file.relative_to(state)}": file.read_bytes() for file in sorted(found) if file.is_file()}


def unpack(held: Bundle, environment: str, state: Path) -> list[str]:
    """Put a local environment's secrets and keys back; names of those that were missing.

    Raises EscrowError for a bundle of another environment, and before anything is written over.
    """
    if held.environment != environment:
        raise EscrowError(f"it is of the environment {held.environment}, not of {environment}")
    files = {state / name.removeprefix("state/"): content for name, content in held.contents.items()}
    if not files or not all(name.startswith("state/") for name in held.contents):
        raise EscrowError("it holds a vault, which a person puts back: docs/escrow.md, Opening it by hand")
    for file, content in files.items():
        if not file.resolve().is_relative_to(state.resolve()):
            raise EscrowError(f"it would write to {file}, outside of {state}")
        if file.exists() and file.read_bytes() != content:
            raise EscrowError(f"{file} is another one than in it: move {state} away, or go on without the bundle")
    missing = [file for file in files if not file.exists()]
    for file in missing:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        store(file, files[file])
    return [str(file.relative_to(state)) for file in missing]


def read_identity(file: Path) -> x25519.Identity:
    """The private key in a file as `age-keygen` writes it. Raises EscrowError."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EscrowError(f"IDENTITY: {file} cannot be read. Name the file that age-keygen made") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        (key,) = keys
        return x25519.Identity.from_str(key)
    except (ValueError, pyrage.IdentityError) as error:
        raise EscrowError(
            f"IDENTITY: {file} is not one private key of age. Name the file that age-keygen made"
        ) from error


def drawn_identities(folder: Path, draw: bool) -> list[Path]:
    """Files of the two keys of a local environment; made if `draw` and missing, otherwise only those there are."""
    files = [folder / "first.key", folder / "second.key"]
    for file in files if draw else []:
        if not file.exists():
            identity = x25519.Identity.generate()
            store(file, f"# public key: {identity.to_public()}\n{identity}\n".encode())
    return [file for file in files if file.exists()]


def store(file: Path, content: bytes) -> None:
    """Write a file (0600) in one piece: an interruption leaves what was there. One writer per folder at a time."""
    with _locked(file.parent):
        temporary = file.parent / ".arches-new"
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder, and at the end see to it that what happened in there is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bundles(folder: Path, environment: str) -> list[Path]:
    """Bundles of an environment in its folder, oldest first."""
    return sorted(folder.glob(f"{environment}-*.age"))
