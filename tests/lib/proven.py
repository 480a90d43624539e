"""Whether a role's scenario has passed a short while ago, with everything that it depends on as it is.

Two scenarios at a time take half an hour. What comes out of one is made of its inputs: the roles, what all scenarios
share, and Debian's packages, which change slowly. FRESH=1 proves everything anew.

`make proven` writes what was proven on this computer to RECORD, to be committed for all others.
"""

import calendar
import hashlib
import os
import re
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lib.fleet import REPOSITORY

MARKS = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches")) / "proven"
RECORD = REPOSITORY / "tests" / "proven" / "roles.txt"
HOLDS_S = 30 * 86400
# No scenario reads these. Everything else counts, also what few of them read: too much is proven, not too little.
APART = re.compile(
    r"(docs|\.github|\.ci|app/(?:embedder/)?tests|tests/(?!lib/|molecule/)\w+|inventories/(?!shared/)\w+)/"
    r"|tests/\w+\.py$|.*\.md$"
)
# A part counts for the scenarios that name it, themselves or through another part; what is in no part counts for all.
# A role that is named comes without its own scenarios.
SHARED, PLAYBOOKS = "molecule/", "playbooks"
RUN = re.compile(
    rf"({SHARED}|roles/\w+/(?:molecule/)?|tests/lib/\w+\.py)"
    r"|(?:site\.yml|Makefile|ansible/(?:\w+\.yml|(?:recover|tasks|restarts|templates)/))"
)
# Nothing is run because these name it.
READ = re.compile(r"(?:app|monitoring|nginx)/")
NAMED = {
    "roles/{}/": re.compile(r"\b(?:role|name): +[\"']?(\w+)"),
    "tests/lib/{}.py": re.compile(r"\blib(?:\.| import )(\w+)"),
    "{}/": re.compile(r"[/\"'](app|monitoring|nginx)/"),
    PLAYBOOKS: re.compile(r"[/\"'](?:ansible/\w+|site)\.yml"),
}


TIME = "%Y-%m-%d %H:%M UTC"


@dataclass
class Part:
    """Files that count together: their hash, and the parts that they name."""

    hash: Any = field(default_factory=hashlib.sha256)
    names: set[str] = field(default_factory=set)


def part_of(name: str) -> str:
    """The part that a file belongs to; "" where it belongs to none."""
    if run := RUN.match(name):
        return run[1] or PLAYBOOKS
    read = READ.match(name)
    return read[0] if read else ""


@cache
def parts(root: Path) -> dict[str, Part]:
    """The parts of a checkout, whether committed or not; "" is what belongs to none."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    found: dict[str, Part] = defaultdict(Part)
    for name in sorted(set(listed)):
        file = root / name
        if name and file.is_file() and not APART.match(name):
            content = file.read_bytes()
            part = found[part_of(name)]
            part.hash.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\0".encode())
            if RUN.match(name):
                text = content.decode(errors="ignore")
                part.names |= {form.format(said) for form, pattern in NAMED.items() for said in pattern.findall(text)}
    return found


def inputs(role: str, root: Path = REPOSITORY) -> str:
    """Hash of every file of a checkout that counts for a role's scenarios."""
    found = parts(root)
    reached: set[str] = set()
    new = {"", SHARED, f"roles/{role}/", f"roles/{role}/molecule/"}
    while new:
        reached |= new
        new = {name for part in new for name in found[part].names if name in found} - reached
    digest = hashlib.sha256("".join(f"{part}\0{found[part].hash.hexdigest()}" for part in sorted(reached)).encode())
    return digest.hexdigest()[:16]


def mark(role: str, scenario: str) -> Path:
    """The file that is there when the scenario has passed with these inputs."""
    return MARKS / f"{role}-{scenario}-{inputs(role)}"


def proven(role: str, scenario: str) -> str:
    """When it was proven, here or as RECORD says, if that still holds; otherwise empty."""
    if os.environ.get("FRESH"):
        return ""
    kept = mark(role, scenario)
    at = max(recorded().get(kept.name, 0.0), kept.stat().st_mtime if kept.exists() else 0.0)
    return time.strftime(TIME, time.gmtime(at)) if time.time() - at < HOLDS_S else ""


def recorded() -> dict[str, float]:
    """When each mark in RECORD was made, in seconds since 1970. Raises ValueError for a line that is none."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {
        name: calendar.timegm(time.strptime(at, TIME)) for name, _, at in (line.partition(" ") for line in lines)
    }  # fmt: skip


def record(scenarios: list[tuple[str, str]]) -> None:
    """Write those of these scenarios that are proven; what is not is left out."""
    RECORD.parent.mkdir(exist_ok=True)
    holds = ((mark(*one).name, proven(*one)) for one in scenarios)
    RECORD.write_text("".join(f"{name} {at}\n" for name, at in sorted(holds) if at))


def remember(role: str, scenario: str) -> None:
    """It has passed just now; what was proven of other inputs is forgotten."""
    MARKS.mkdir(parents=True, exist_ok=True)
    kept = mark(role, scenario)
    for old in MARKS.glob(f"{role}-{scenario}-*"):
        old.unlink()
    kept.touch()


if __name__ == "__main__":
    record([(path.parents[2].name, path.parent.name) for path in REPOSITORY.glob("roles/*/molecule/*/molecule.yml")])
