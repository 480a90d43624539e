#!/usr/bin/env python3
"""Make a small signed apt repository for a scenario: molecule/apt.py FOLDER [VERSION [KEY]]

The folder then holds what packages/repository.py writes; KEY (``key`` unless given) is a file in it, made at first use.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1] / "packages" / "repository.py"
CONTROL = """Package: arches-hello
Version: {version}
Architecture: all
Maintainer: Arches <support@archesai.com>
Description: says which version it is
"""


def make(folder: Path, version: str, key: Path) -> None:
    """Pack ``arches-hello`` of a version, and publish it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not key.exists():
        subprocess.run([sys.executable, REPOSITORY, "--new-key", key], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        for part, text in (("DEBIAN/control", CONTROL.format(version=version)), ("usr/share/arches-hello", version)):
            (tree / part).parent.mkdir(parents=True)
            (tree / part).write_text(text)
        tree.chmod(0o755)
        package = Path(scratch) / f"arches-hello_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True, capture_output=True)
        subprocess.run([sys.executable, REPOSITORY, "--into", folder, "--key", key, package], check=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    version = sys.argv[2] if len(sys.argv) > 2 else "1.0"
    make(target, version, target / (sys.argv[3] if len(sys.argv) > 3 else "key"))
