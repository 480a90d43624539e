"""The content of a release: a relocated virtual environment with a manifest, one archive with the same bytes each time.

A release is everything a process of ours needs beside the host's own Python 3.13: the locked dependencies, our package
(with its migrations), further files. Wheels for Debian 13 are chosen by their tags: nothing is compiled, so that
neither a Debian machine nor Python 3.13 is needed here. Bytecode is made on the host, by the Python that will run it.
"""

import gzip
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ReleaseError, sbom

PYTHON = "3.13"
# Debian 13 has glibc 2.41; wheels are chosen up to 2.40, the newest tag that uv knows.
LIBC = "manylinux_2_40"


@dataclass(frozen=True)
class Recipe:
    """What goes into a release.

    :param name: name of the release, e.g. ``api``.
    :param project: directory with ``pyproject.toml`` and ``src/`` (our package).
    :param lock: hashed lock file of the dependencies.
    :param extra: further directories, by their name inside the release.
    """

    name: str
    project: Path
    lock: Path
    extra: dict[str, Path] = field(default_factory=dict)

    def sources(self) -> Iterator[tuple[str, Path]]:
        """Every file that decides the content, by a name that does not depend on where the checkout lies."""
        yield "lock", self.lock
        yield "project", self.project / "pyproject.toml"
        roots = {"builder": Path(__file__).parent, "src": self.project / "src", **self.extra}
        for label, root in roots.items():
            for path in files(root):
                yield f"{label}/{path.relative_to(root)}", path

    def digest(self) -> str:
        """Hash of everything that decides the content: sources, lock, builder, tool, kind of machine."""
        digest = hashlib.sha256(f"{self.name} {platform.machine()} {uv('--version')}\n".encode())
        for name, path in self.sources():
            digest.update(f"{name} {sha256(path)}\n".encode())
        return digest.hexdigest()[:12]


def files(root: Path) -> list[Path]:
    """Files below a directory in a fixed order, without caches and hidden files.

    :raises ReleaseError: when the directory is missing.
    """
    if not root.is_dir():
        raise ReleaseError(f"{root} is missing: a release is built from a complete checkout.")
    parts = (path for path in root.rglob("*") if path.is_file())
    return sorted(p for p in parts if not any(x == "__pycache__" or x[0] == "." for x in p.relative_to(root).parts))


def copy(source: Path, target: Path) -> None:
    """Copy what ``files`` lists."""
    for path in files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def uv(*arguments: str | Path, failure: str = "uv failed") -> str:
    """Run uv: the environment's own, else the one on PATH; returns what it printed.

    :param failure: beginning of the error's text.
    :raises ReleaseError: with uv's own words.
    """
    own = Path(sys.executable).with_name("uv")
    command = [own if own.exists() else "uv", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("uv was not found: run `make environment`, which installs it.") from None
    if done.returncode:
        raise ReleaseError(f"{failure}\n{done.stderr.strip()}")
    return done.stdout.strip()


def install_dependencies(lock: Path, target: Path) -> None:
    """Install the locked wheels for the hosts into a directory.

    :raises ReleaseError: when a package has no wheel for the hosts, a hash differs, or nothing can be fetched.
    """
    uv(
        "pip", "install", "--quiet", "--no-config", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--link-mode", "copy", "--python", sys.executable, "--python-version", PYTHON,
        "--python-platform", f"{platform.machine()}-{LIBC}", "--target", target, "--requirement", lock,
        failure=f"{lock}: the wheels could not be installed, and nothing was published. "
        "Without a network they have to be in uv's cache.",
    )  # fmt: skip
    # Scripts carry the builder's interpreter in their first line; hosts start modules (`python3 -m`).
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)
    for record in target.glob("*.dist-info/RECORD"):
        lines = sorted(line for line in record.read_text().splitlines(keepends=True) if not line.startswith("bin/"))
        record.write_text("".join(lines))


def install_package(project: Path, version: str, scratch: Path, target: Path) -> None:
    """Build our own wheel and install it into a directory; uv does so by itself, without a network.

    :param version: of the wheel; empty: the one in ``pyproject.toml``.
    :raises ReleaseError: when ``pyproject.toml`` is wrong.
    """
    # From a copy: no file that a tool has left in the checkout gets into the wheel.
    copy(project / "src", scratch / "project" / "src")
    shutil.copyfile(project / "pyproject.toml", scratch / "project" / "pyproject.toml")
    if version:
        uv("version", "--quiet", "--no-config", "--frozen", "--project", scratch / "project", version)
    failure = f"{project}/pyproject.toml: our wheel could not be built."
    folder = scratch / "wheel"
    uv(
        "build", "--quiet", "--no-config", "--offline", "--wheel", "--out-dir", folder, scratch / "project",
        failure=failure,
    )  # fmt: skip
    [wheel] = folder.glob("*.whl")
    # A wheel without scripts and data is installed when it is unpacked; an installer would add when and from where.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)  # noqa: S202 - made a line above


def lay_out(recipe: Recipe, version: str, commit: str, scratch: Path) -> dict[str, Any]:
    """Make the release's tree at ``scratch/tree``, as it will lie on the hosts.

    :param version: of the release: ``v1.4.0``, or a hash of its content with a label in front.
    :param commit: that it was built from; empty for a working tree.
    :returns: the manifest.
    """
    root = scratch / "tree"
    site = root / "lib" / f"python{PYTHON}" / "site-packages"
    site.mkdir(parents=True)
    install_dependencies(recipe.lock, site)
    (root / "sbom.cdx.json").write_text(json.dumps(sbom.document(recipe.name, version, site), indent=1) + "\n")
    install_package(recipe.project, version.removeprefix("v") if commit else "", scratch, site)
    for name, source in recipe.extra.items():
        copy(source, root / name)
    # This and the interpreter's link are all that makes a directory a virtual environment.
    (root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (root / "bin").mkdir()
    (root / "bin" / "python3").symlink_to("/usr/bin/python3")
    (root / "release.env").write_text(f"RELEASE={version}\n")
    content = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    sizes = {path: path.stat().st_size for path in content}
    manifest = {
        "name": recipe.name,
        "version": version,
        "commit": commit,
        "architecture": platform.machine(),
        "python": PYTHON,
        "lock_sha256": sha256(recipe.lock),
        # What it takes on a host, in bytes: bytecode is about as long as its source.
        "space": sum(sizes.values()) + sum(size for path, size in sizes.items() if path.suffix == ".py"),
        "files": {str(path.relative_to(root)): sha256(path) for path in content},
    }
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def pack(root: Path, archive: Path) -> None:
    """Pack a tree so that equal trees give equal bytes: sorted, no times, no owners, no gzip header.

    The manifest comes first: a host reads it before anything else.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "root", "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    first = root / "manifest.json"
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in [first, *(path for path in sorted(root.rglob("*")) if path != first)]:
            tar.add(path, str(path.relative_to(root)), recursive=False, filter=plain)
