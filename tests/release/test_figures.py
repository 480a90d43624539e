"""The real API is built twice, elsewhere and at another time: one tag, the same bytes, quickly, and not too large."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from artefact.signing import KEY_VARIABLE, Signer

from .test_tag import commit, git

REPOSITORY = Path(__file__).resolve().parents[2]
# From a warm cache, in seconds; of the archive, in bytes.
TIME, SIZE = 60, 120_000_000


def checkout_of_this_tree(root: Path) -> None:
    """A repository of its own with the files of this working tree, as v0.0.1 on main."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(lambda name: os.path.lexists(REPOSITORY / name), filter(None, names)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_symlink():
            (root / name).symlink_to(os.readlink(REPOSITORY / name))
        else:
            (root / name).write_bytes((REPOSITORY / name).read_bytes())
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "As it is")
    git(root, "tag", "v0.0.1")


def build(root: Path, signer: Signer, **environment: str) -> tuple[dict[str, Any], float]:
    """The record of the release that a checkout's own builder makes, and how long it took in seconds."""
    command = [
        sys.executable,
        "ansible/bin/release.py",
        "tag",
        "v0.0.1",
        "--into=dist",
        f"--public-key={signer.public}",
    ]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=root, env={**os.environ, KEY_VARIABLE: signer.secret, **environment}, check=False,
        umask=0o077 if environment else 0o022, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - started


def test_the_api_is_built_twice(tmp_path: Path, signer: Signer) -> None:
    first, second = tmp_path / "one", tmp_path / "another" / "place with a space"
    checkout_of_this_tree(first)
    # The tag is one: the same commit, made once.
    subprocess.run(["git", "clone", "--quiet", "--branch", "v0.0.1", first, second], check=True, capture_output=True)
    git(second, "fetch", "--quiet", "origin", "main:main")
    for path in (second / "app").rglob("*"):
        os.utime(path, (86_400, 86_400), follow_symlinks=False)
    built, _ = build(first, signer)
    again, seconds = build(second, signer, TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="7")
    assert built == again
    archives = [(root / "dist" / built["archive"]).read_bytes() for root in (first, second)]
    assert archives[0] == archives[1]
    print(f"built in {seconds:.1f} s, {built['size'] / 1e6:.1f} MB")
    assert seconds <= TIME and built["size"] <= SIZE
