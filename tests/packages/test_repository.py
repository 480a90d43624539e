"""The repository is signed, has the same bytes as long as nothing is new, and survives every failure."""

import gzip
import hashlib
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def key(repository: ModuleType) -> bytes:
    found: bytes = repository.new_key()
    return found


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    """A package without content."""
    control = tmp_path / "tree" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: arches-toy\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: toy\n"
    )
    path = tmp_path / "arches-toy_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", tmp_path / "tree", path], check=True, capture_output=True)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(folder: Path, into: Path) -> Path:
    """The tree that hosts would get."""
    (archive,) = folder.glob("apt-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    return into


def verified(public: Path, signed: Path) -> int:
    """Exit status of gpgv, which is what apt trusts."""
    keyring = public.with_suffix(".gpg")
    subprocess.run(
        ["gpg", "--batch", "--yes", "--dearmor", "--output", keyring, public], check=True, capture_output=True
    )
    return subprocess.run(["gpgv", "--keyring", keyring, signed], check=False, capture_output=True).returncode


def test_the_signature_holds_until_a_byte_is_altered(
    repository: ModuleType, key: bytes, deb: Path, tmp_path: Path
) -> None:
    repository.publish([deb], key, tmp_path / "apt")
    tree = unpacked(tmp_path / "apt", tmp_path / "served")
    signed = tree / "InRelease"
    assert verified(tmp_path / "apt" / "apt.asc", signed) == 0
    text = signed.read_bytes()
    signed.write_bytes(text.replace(b"Suite: arches", b"Suite: Arches"))
    assert verified(tmp_path / "apt" / "apt.asc", signed) != 0
    (tmp_path / "other.asc").write_bytes(other_public(repository, deb, tmp_path))
    signed.write_bytes(text)
    assert verified(tmp_path / "other.asc", signed) != 0


def other_public(repository: ModuleType, deb: Path, tmp_path: Path) -> bytes:
    """The public half of another key."""
    repository.publish([deb], repository.new_key(), tmp_path / "elsewhere")
    return (tmp_path / "elsewhere" / "apt.asc").read_bytes()


def test_the_lists_name_the_packages_and_are_named_by_the_signature(
    repository: ModuleType, key: bytes, deb: Path, tmp_path: Path
) -> None:
    repository.publish([deb], key, tmp_path / "apt")
    tree = unpacked(tmp_path / "apt", tmp_path / "served")
    index = (tree / "Packages").read_bytes()
    assert hashlib.sha256(deb.read_bytes()).hexdigest() in index.decode()
    assert gzip.decompress((tree / "Packages.gz").read_bytes()) == index
    assert hashlib.sha256(index).hexdigest() in (tree / "InRelease").read_text()
    assert (tree / "pool" / deb.name).read_bytes() == deb.read_bytes()


def test_nothing_new_is_nothing_done(repository: ModuleType, key: bytes, deb: Path, tmp_path: Path) -> None:
    first = repository.publish([deb], key, tmp_path / "apt")
    before = contents(tmp_path / "apt")
    second = repository.publish([deb], key, tmp_path / "apt")
    assert (first["built"], second["built"]) == (True, False)
    assert contents(tmp_path / "apt") == before


@pytest.mark.parametrize("failure", ["key", "package", "program"])
def test_a_failure_leaves_the_old_repository(
    failure: str, repository: ModuleType, key: bytes, deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish([deb], key, tmp_path / "apt")
    before = contents(tmp_path / "apt")
    newer = tmp_path / "arches-toy_1.1_all.deb"
    if failure != "package":
        newer.write_bytes(deb.read_bytes())
    if failure == "program":
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "apt-ftparchive").write_text("#!/bin/sh\necho 'it is broken' >&2; exit 1\n")
        (programs / "apt-ftparchive").chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
    with pytest.raises(
        (repository.RepositoryError, OSError), match=r"vault_apt_repository_key|No such file|it is broken"
    ):
        repository.publish([newer], b"none" if failure == "key" else key, tmp_path / "apt")
    assert contents(tmp_path / "apt") == before


def test_a_key_is_born_once_and_for_its_owner_only(
    repository: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    monkeypatch.setattr("sys.argv", ["repository.py", "--new-key", str(path)])
    assert repository.main() == 0
    assert path.stat().st_mode & 0o777 == 0o600
    born = path.read_bytes()
    assert repository.main() == 1
    assert path.read_bytes() == born, "an existing key is never replaced"
    assert "PRIVATE" not in "".join(capsys.readouterr())
