"""The image that machines are made from: a Debian tree, built once per definition and kept.

A definition is a folder: `packages.txt`, `dpkg.cfg`, `customize.sh` and the tree `files/` (ansible/image/). The
cache is keyed by its content and by where packages come from. A tree gets its final name only when it is whole.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from .preflight import KEYRING, require_space
from .system import NspawnError, locked, run, write_file

SUITE = "trixie"
_BUILD_MB = 1200
# The package lists inside an image name versions that the archive drops in time.
_FRESH_SECONDS = 14 * 86_400
# An image that no machine stands on is kept this long after it was last asked for: another branch may want it.
_KEEP_SECONDS = 7 * 86_400


def sources() -> list[str]:
    """Return the apt sources of an image, taken from this computer's own; empty when it has none of Debian's.

    The archive's host is never written down: where this computer gets Debian from, its machines do too.
    """
    fields = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    archives: dict[str, str] = {}
    for line in run("apt-get", "indextargets", "--format", fields, check=False).stdout.splitlines():
        created_by, origin, label, uri = line.split("|")
        uri = uri.rstrip("/")
        if created_by != "Packages" or not uri.startswith(("http://", "https://")):
            continue
        # Origin and label are known after the first `apt-get update`; until then the folder's name has to do.
        known = (
            {"Debian": "debian", "Debian-Security": "debian-security"}.get(label) if origin else uri.rsplit("/", 1)[-1]
        )
        if known in ("debian", "debian-security"):
            archives.setdefault(known, uri)
    if "debian" not in archives:
        return []
    lines = [f"deb {archives['debian']} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
    if "debian-security" in archives:
        lines.append(f"deb {archives['debian-security']} {SUITE}-security main")
    return lines


class Image:
    """The image of the definition in the folder `definition`, kept below `cache` for machines below `home`."""

    def __init__(self, definition: Path, cache: Path, home: Path) -> None:
        if not (definition / "packages.txt").is_file():
            raise NspawnError(f"There is no image definition in {definition}: packages.txt is missing.")
        self.definition = definition
        self.folder = cache / "images"
        self.home = home
        self.sources = sources()
        self.key = self._hash()

    def _hash(self) -> str:
        digest = hashlib.sha256("\n".join((SUITE, *self.sources)).encode())
        for path in sorted(self.definition.rglob("*")):
            if path.is_file():
                digest.update(f"\0{path.relative_to(self.definition)}\0{path.stat().st_mode & 0o100}\0".encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def find(self) -> Path | None:
        """Return the newest tree of this definition, None when there is none or it is too old."""
        built = sorted(self.folder.glob(f"{self.key}.*"), key=lambda path: int(path.suffix[1:]))
        if built and time.time() - int(built[-1].suffix[1:]) < _FRESH_SECONDS:
            return built[-1] / "tree"
        return None

    def ensure(self) -> tuple[Path, bool]:
        """Return the image's tree, and whether it had to be built.

        Raises NspawnError with the end of the build's own log when that fails.
        """
        with locked(self.folder / "lock", seconds=600, what="The image cache"):
            tree = self.find()
            built = tree is None
            if tree is None:
                self._sweep()
                require_space(self.folder, _BUILD_MB, "building the machine image", "ARCHES_CACHE")
                tree = self._build()
            # Whose machines may stand on it, so that a later sweep can ask.
            users = tree.with_name("users.json")
            homes = json.loads(users.read_text()) if users.exists() else []
            write_file(users, json.dumps(sorted({*homes, str(self.home)})))
            os.utime(users)
        return tree, built

    def _sweep(self) -> None:
        """Remove builds that were cut off, and images that were long not asked for and no machine stands on."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for entry in self.folder.iterdir():
            if not entry.is_dir() or _in_use(entry):
                continue
            for mount in mounts:
                if mount.startswith(f"{entry}/"):
                    run("umount", "--lazy", mount)
            shutil.rmtree(entry)

    def _build(self) -> Path:
        """Build a tree under a name that nobody uses, and rename it; return its final name."""
        building = self.folder / f"building-{self.key}"
        building.mkdir(mode=0o755)
        done = subprocess.run(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=apt",
                "--skip=cleanup/apt/lists",  # so that a role's first apt task needs no update
                f"--keyring={KEYRING}",
                f"--dpkgopt={self.definition / 'dpkg.cfg'}",
                f"--include={','.join(self._packages())}",
                f'--customize-hook="{self.definition / "customize.sh"}" "$1"',
                SUITE,
                str(building / "tree"),
                *(["-"] if self.sources else []),
            ],
            input="\n".join(self.sources),
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(building)
            end = " | ".join(done.stderr.strip().splitlines()[-8:])
            raise NspawnError(f"The machine image was not built, mmdebstrap ended with {done.returncode}: {end}")
        final = self.folder / f"{self.key}.{int(time.time())}"
        building.rename(final)
        return final / "tree"

    def _packages(self) -> list[str]:
        lines = (self.definition / "packages.txt").read_text().splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _in_use(entry: Path) -> bool:
    """Whether the image in `entry` was asked for lately, or any machine (running or not) stands on it."""
    users = entry / "users.json"
    if not users.exists():
        return False
    if time.time() - users.stat().st_mtime < _KEEP_SECONDS:
        return True
    homes = [Path(home) for home in json.loads(users.read_text())]
    records = [path for home in homes for path in home.glob("fleets/*/machines/*/machine.json")]
    return any(json.loads(record.read_text())["image"] == str(entry / "tree") for record in records)
