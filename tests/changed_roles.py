#!/usr/bin/env python3
"""Which roles have to be tried? tests/changed_roles.py origin/main

Prints a JSON list of the roles whose scenario reads something else than at the commit that this one and the given one
descend from (lib/proven.py). With $GITHUB_OUTPUT the list is also written there, as `roles`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lib.fleet import REPOSITORY
from lib.proven import inputs


def git(*words: str | Path, root: Path) -> str:
    """What git says of a repository; raises subprocess.CalledProcessError."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def checkout(commit: str, root: Path) -> Iterator[Path]:
    """The files of a commit in a folder of their own, for as long as it takes."""
    with TemporaryDirectory() as folder:
        git("worktree", "add", "--quiet", "--detach", folder, commit, root=root)
        try:
            yield Path(folder)
        finally:
            git("worktree", "remove", "--force", folder, root=root)


def changed(base: str, root: Path = REPOSITORY) -> list[str]:
    """The roles whose scenario has other inputs than at the fork from `base`; raises subprocess.CalledProcessError."""
    roles = sorted(path.parents[2].name for path in root.glob("roles/*/molecule/default/molecule.yml"))
    with checkout(git("merge-base", base, "HEAD", root=root), root) as before:
        return [role for role in roles if inputs(role, root) != inputs(role, before)]


def main() -> int:
    """Ask git, and print."""
    if len(sys.argv) != 2:
        print("changed_roles: name what to compare with, such as origin/main", file=sys.stderr)
        return 2
    try:
        found = json.dumps(changed(sys.argv[1]))
    except subprocess.CalledProcessError as failed:
        said = f"changed_roles: {sys.argv[1]}: {failed.stderr.strip()}."
        print(f"{said} In a shallow clone the history is missing: git fetch --unshallow", file=sys.stderr)
        return 1
    print(found)
    if target := os.environ.get("GITHUB_OUTPUT"):
        with Path(target).open("a") as stream:
            stream.write(f"roles={found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
