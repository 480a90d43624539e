#!/usr/bin/env python3
"""Build a release: a relocated virtual environment as one archive with the same bytes every time.

A release is everything a process of ours needs beside the host's own Python 3.13: the locked dependencies, our package,
further files (migrations), precompiled. It is unpacked at ``<prefix>/<version>`` and never changed there.
Wheels for Debian 13 are chosen by their tags: nothing is compiled, no Debian machine is needed (docs/releases.md).
The archive is kept under the hash of what went into it: nothing new means nothing to do.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = "3.13"
# Debian 13 has glibc 2.41; wheels are chosen up to 2.40, the newest tag that uv knows.
LIBC = "manylinux_2_40"
KEEP = 5


class ReleaseError(Exception):
    """The release cannot be built; the message names the fix."""


@dataclass(frozen=True)
class Recipe:
    """What goes into a release.

    :param name: name of the release, e.g. ``api``.
    :param project: directory with ``pyproject.toml`` (version) and ``src/`` (our packages).
    :param lock: hashed lock file of the dependencies.
    :param extra: further directories, by their name inside the release.
    :param prefix: directory on the hosts in which ``<version>/`` will lie.
    """

    name: str
    project: Path
    lock: Path
    extra: dict[str, Path]
    prefix: Path

    def sources(self) -> Iterator[tuple[str, Path]]:
        """Every file that decides the content, by a name that does not depend on where the checkout lies."""
        yield "builder", Path(__file__)
        yield "lock", self.lock
        for label, root in [("src", self.project / "src"), *sorted(self.extra.items())]:
            for path in files(root):
                yield f"{label}/{path.relative_to(root)}", path

    def version(self) -> str:
        """``<version of the project>+<hash of the content>``."""
        digest = hashlib.sha256(f"{self.name} {self.prefix} {platform.machine()}\n".encode())
        for name, path in self.sources():
            digest.update(f"{name} {sha256(path)}\n".encode())
        project = tomllib.loads((self.project / "pyproject.toml").read_text())
        return f"{project['project']['version']}+{digest.hexdigest()[:12]}"


def files(root: Path) -> list[Path]:
    """Files below a directory in a fixed order, without caches and hidden files.

    :raises ReleaseError: when the directory is missing.
    """
    if not root.is_dir():
        raise ReleaseError(f"{root} is missing: a release is built from a complete checkout.")
    parts = (path for path in root.rglob("*") if path.is_file())
    return sorted(p for p in parts if not any(x == "__pycache__" or x[0] == "." for x in p.relative_to(root).parts))


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def install_dependencies(lock: Path, target: Path) -> None:
    """Install the locked wheels into a directory.

    :raises ReleaseError: when a package has no wheel for the hosts, a hash differs, or nothing can be fetched.
    """
    uv = Path(sys.executable).with_name("uv")
    command = [
        str(uv) if uv.exists() else "uv", "pip", "install", "--quiet", "--no-config", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--link-mode", "copy", "--python", sys.executable, "--python-version", PYTHON,
        "--python-platform", f"{platform.machine()}-{LIBC}", "--target", str(target), "--requirement", str(lock),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{lock}: the wheels could not be installed.\n{done.stderr.strip()}")
    # Scripts carry the controller's interpreter in their first line; hosts start modules (`python3 -m`).
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)
    for record in target.glob("*.dist-info/RECORD"):
        lines = sorted(line for line in record.read_text().splitlines(keepends=True) if not line.startswith("bin/"))
        record.write_text("".join(lines))


def compile_all(site: Path, built: Path, final: Path) -> None:
    """Compile every module; hosts cannot write into a release, and nobody changes one (hence unchecked hashes)."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), "--invalidation-mode",
               "unchecked-hash", "-s", str(built), "-p", str(final), str(site)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ReleaseError(f"a module does not compile:\n{done.stdout.strip()}")


def lay_out(recipe: Recipe, version: str, root: Path) -> None:
    """Make the release's tree at ``root``, as it will lie at ``<prefix>/<version>``."""
    site = root / "lib" / f"python{PYTHON}" / "site-packages"
    site.mkdir(parents=True)
    install_dependencies(recipe.lock, site)
    for source, target in [(recipe.project / "src", site), *((p, root / n) for n, p in recipe.extra.items())]:
        for path in files(source):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    compile_all(site, root, recipe.prefix / version)
    # This and the interpreter's link are all that makes a directory a virtual environment.
    (root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (root / "bin").mkdir()
    (root / "bin" / "python3").symlink_to("/usr/bin/python3")
    (root / "release.env").write_text(f"RELEASE={version}\n")
    content = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    manifest = {
        "name": recipe.name,
        "version": version,
        "python": PYTHON,
        "lock_sha256": sha256(recipe.lock),
        "files": {str(path.relative_to(root)): sha256(path) for path in content},
    }
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def pack(root: Path, archive: Path) -> None:
    """Pack a tree so that equal trees give equal bytes: sorted, no times, no owners, no gzip header."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "root", "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(root.rglob("*")):
            tar.add(path, str(path.relative_to(root)), recursive=False, filter=plain)


def build(recipe: Recipe, cache: Path) -> dict[str, object]:
    """Build a release unless it is there already, and say in ``<cache>/<name>.json`` which one is the newest.

    :returns: name, version, archive (file name in the cache), sha256, built (whether anything was done).
    :raises ReleaseError: naming the fix.
    """
    if sys.version_info[:2] != (3, 13):
        raise ReleaseError(f"releases are compiled by the hosts' Python {PYTHON}, not {platform.python_version()}.")
    version = recipe.version()
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache.resolve() / f"{recipe.name}-{version}.tar.gz"
    pointer = cache / f"{recipe.name}.json"
    known = json.loads(pointer.read_text()) if pointer.exists() else {}
    # An archive that is not the one that was built (a cut disk, a careless hand) is built again.
    built = not archive.exists() or (known.get("version") == version and known["sha256"] != sha256(archive))
    if built:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as scratch:
            # The tree's own name is short and fixed: nothing of the builder's machine gets into it.
            lay_out(recipe, version, Path(scratch) / "tree")
            pack(Path(scratch) / "tree", Path(scratch) / "archive")
            (Path(scratch) / "archive").replace(archive)
    digest = sha256(archive)
    newest: dict[str, object] = {"name": recipe.name, "version": version, "archive": archive.name, "sha256": digest}
    if newest != known:
        fresh = pointer.with_suffix(".new")
        fresh.write_text(json.dumps(newest, indent=1) + "\n")
        fresh.replace(pointer)
    archive.touch()
    archives = sorted(cache.glob(f"{recipe.name}-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    for old in archives[:-KEEP]:
        old.unlink()
    return {**newest, "built": built}


def main() -> int:
    """Command line; prints one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--project", type=Path, required=True, help="directory with pyproject.toml and src/")
    parser.add_argument("--lock", type=Path, required=True, help="hashed lock file")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME=DIR", help="further directory")
    parser.add_argument("--prefix", type=Path, required=True, help="directory of the releases on the hosts")
    parser.add_argument("--cache", type=Path, required=True, help="directory of the archives on this machine")
    arguments = parser.parse_args()
    extra = {name: Path(path) for name, path in (pair.split("=", 1) for pair in arguments.extra)}
    recipe = Recipe(arguments.name, arguments.project, arguments.lock, extra, arguments.prefix)
    try:
        print(json.dumps(build(recipe, arguments.cache)))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
