"""Which tags are releases, and the sources of one."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

from . import ReleaseError

# Semantic versions whose pre-releases Python's packages know as well.
VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-(alpha|beta|rc)\.(0|[1-9]\d*))?")


def git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in a checkout."""
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)


def order(version: str) -> tuple[int, int, int, str, int]:
    """Sorts versions; a pre-release comes before its release.

    :raises ReleaseError: when it is no version.
    """
    match = VERSION.fullmatch(version)
    if match is None:
        raise ReleaseError(
            f"{version!r} is no version of a release: write v1.4.0, or v1.4.0-rc.1 (alpha, beta, rc) before it."
        )
    major, minor, patch, stage, number = match.groups()
    return int(major), int(minor), int(patch), stage or "release", int(number or 0)


def commit_of(repository: Path, version: str, *, older: bool) -> str:
    """The commit of a tag, when it may be released from this checkout.

    :param older: whether a newer tag may exist.
    :raises ReleaseError: when it may not, naming the fix.
    """
    order(version)
    found = git(repository, "rev-parse", "--verify", "--quiet", f"refs/tags/{version}^{{commit}}")
    if found.returncode:
        raise ReleaseError(f"there is no tag {version} here: git tag {version} <commit>, or git fetch --tags.")
    commit = found.stdout.decode().strip()
    if git(repository, "rev-parse", "HEAD").stdout.decode().strip() != commit:
        raise ReleaseError(f"the checkout is not at {version}, whose own builder counts: git checkout {version}.")
    changed = git(repository, "status", "--porcelain").stdout.decode().splitlines()
    if changed:
        raise ReleaseError(
            f"the checkout differs from {version} ({changed[0].strip()}, {len(changed)} in all), and a release is what "
            "its tag says: commit and tag that, or git stash --include-untracked."
        )
    _must_be_merged(repository, version, commit)
    newer = newest_tag(repository)
    if order(newer) > order(version) and not older:
        raise ReleaseError(f"{version} is older than {newer}: if that is meant, say -e older=true (OLDER=1).")
    return commit


def newest_tag(repository: Path) -> str:
    """The highest version that has a tag."""
    tags = git(repository, "tag", "--list", "v*").stdout.decode().split()
    return max((tag for tag in tags if VERSION.fullmatch(tag)), key=order)


def _must_be_merged(repository: Path, version: str, commit: str) -> None:
    for branch in ("refs/remotes/origin/main", "refs/heads/main"):
        if git(repository, "rev-parse", "--verify", "--quiet", branch).returncode:
            continue
        if git(repository, "merge-base", "--is-ancestor", commit, branch).returncode:
            name = branch.removeprefix("refs/").removeprefix("remotes/").removeprefix("heads/")
            raise ReleaseError(
                f"{version} is not on {name}: merge it and tag the merged commit "
                "(a shallow clone does not know: git fetch --unshallow)."
            )
        return
    raise ReleaseError("this checkout has no branch main to hold the tag against: git fetch origin main.")


def export(repository: Path, commit: str, folder: Path) -> None:
    """Put a commit's files into a directory, and nothing else that lies in the checkout.

    :raises ReleaseError: when git cannot.
    """
    done = git(repository, "archive", "--format=tar", commit)
    if done.returncode:
        raise ReleaseError(f"git archive {commit}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
