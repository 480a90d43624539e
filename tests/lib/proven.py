"""Whether a role's scenario has passed on this computer a short while ago, with everything that it depends on as it is.

Two scenarios at a time take half an hour. What comes out of one is made of its inputs: the roles, what all scenarios
share, and Debian's packages, which change from week to week. FRESH=1 proves everything anew.
"""

import hashlib
import os
import re
import subprocess
import time
from functools import cache
from pathlib import Path

from lib.fleet import REPOSITORY

MARKS = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches")) / "proven"
HOLDS_S = 7 * 86400
# No scenario reads these. Everything else counts, also what few of them read: too much is proven, not too little.
APART = re.compile(r"(docs|\.github|\.ci|tests/(?!lib/|molecule/)\w+|inventories/(?!shared/)\w+)/|.*\.md$")


@cache
def inputs(root: Path = REPOSITORY) -> str:
    """Hash of every file of a checkout that counts, whether committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    digest = hashlib.sha256()
    for name in sorted(set(listed)):
        file = root / name
        if name and file.is_file() and not APART.match(name):
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:16]


def mark(role: str, scenario: str) -> Path:
    """The file that is there when the scenario has passed with these inputs."""
    return MARKS / f"{role}-{scenario}-{inputs()}"


def proven(role: str, scenario: str) -> str:
    """When it was proven, if that still holds; otherwise empty."""
    try:
        at = mark(role, scenario).stat().st_mtime
    except FileNotFoundError:
        return ""
    holds = not os.environ.get("FRESH") and time.time() - at < HOLDS_S
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at)) if holds else ""


def remember(role: str, scenario: str) -> None:
    """It has passed just now; what was proven of other inputs is forgotten."""
    MARKS.mkdir(parents=True, exist_ok=True)
    kept = mark(role, scenario)
    for old in MARKS.glob(f"{role}-{scenario}-*"):
        old.unlink()
    kept.touch()
