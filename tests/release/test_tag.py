"""A tag is released when it is a version, merged, clean and the newest; once published, its bytes never change."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from artefact import ReleaseError
from artefact.build import Recipe
from artefact.store import Store
from artefact.tag import order

from .conftest import Project
from .test_build import contents_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command `release.py`, with the small project's recipe."""
    spec = importlib.util.spec_from_file_location("release_command", REPOSITORY / "ansible/bin/release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        module, "recipe", lambda root: Recipe("toy", root / "app", root / "requirements" / "app.txt"), raising=True
    )
    return module


def git(root: Path, *arguments: str) -> str:
    """Run git in a checkout."""
    who = {
        f"GIT_{role}_{what}": f"{role}@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(["git", "-C", root, *arguments], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(root: Path, text: str) -> str:
    """Commit everything; returns the commit."""
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", text)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def checkout(project: Project) -> Project:
    """The small project in git, with v1.0.0 on main and checked out."""
    git(project.root, "init", "--quiet", "--initial-branch=main")
    commit(project.root, "Start")
    git(project.root, "tag", "v1.0.0")
    return project


def next_tag(checkout: Project, version: str) -> str:
    """Commit a change and tag it; returns the commit."""
    (checkout.package / "__init__.py").write_text(f"ANSWER = {version!r}\n")
    made = commit(checkout.root, f"Change for {version}")
    git(checkout.root, "tag", version)
    return made


def test_a_tag_is_built_from_its_commit_and_may_be_published_again(
    command: ModuleType, checkout: Project, store: Store
) -> None:
    made = next_tag(checkout, "v1.4.0")
    # Ignored files lie in a checkout, and are not the tag's.
    (checkout.root / ".git/info/exclude").write_text("*.log\n")
    (checkout.package / "tool.log").write_text("noise")
    record = command.tag(store, checkout.root, "v1.4.0", older=False)
    assert (record["version"], record["commit"], record["archive"]) == ("v1.4.0", made, "toy-v1.4.0.tar.gz")
    contents = contents_of(store, record)
    manifest = json.loads(contents["manifest.json"])
    assert (manifest["version"], manifest["commit"]) == ("v1.4.0", made)
    assert contents["release.env"] == b"RELEASE=v1.4.0\n"
    site = "lib/python3.13/site-packages"
    assert b"\nVersion: 1.4.0\n" in contents[f"{site}/toy-1.4.0.dist-info/METADATA"], "the wheel has the tag's version"
    assert not [name for name in contents if name.endswith(".log")]
    assert store.signer.trusts(store.folder / record["archive"])
    assert store.record("toy", "v1.4.0") == record
    assert command.tag(store, checkout.root, "v1.4.0", older=False) == record


def test_a_published_version_never_changes(command: ModuleType, checkout: Project, store: Store) -> None:
    record = command.tag(store, checkout.root, "v1.0.0", older=False)
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    git(checkout.root, "tag", "--delete", "v1.0.0")
    next_tag(checkout, "v1.0.0")
    with pytest.raises(
        ReleaseError, match=f"is published with SHA-256 {record['sha256']}, and this build has .* give what"
    ):
        command.tag(store, checkout.root, "v1.0.0", older=False)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


@pytest.mark.parametrize(
    "version", ["", "1.4.0", "v1.4", "v01.4.0", "v1.4.0+x", "v1.4.0-rc1", "latest", "v1.4.0\n", "../v1.4.0"]
)
def test_what_is_no_version_is_refused(command: ModuleType, checkout: Project, store: Store, version: str) -> None:
    with pytest.raises(ReleaseError, match=r"is no version of a release: write v1\.4\.0"):
        command.tag(store, checkout.root, version, older=False)


def test_versions_have_an_order() -> None:
    rising = [
        "v0.9.10",
        "v1.4.0-alpha.2",
        "v1.4.0-beta.1",
        "v1.4.0-rc.2",
        "v1.4.0-rc.10",
        "v1.4.0",
        "v1.10.0",
        "v2.0.0",
    ]
    assert sorted(sorted(rising), key=order) == rising


def test_a_tag_that_is_not_there_is_named(command: ModuleType, checkout: Project, store: Store) -> None:
    git(checkout.root, "branch", "v1.4.0")
    with pytest.raises(ReleaseError, match=r"there is no tag v1\.4\.0 here: git tag v1\.4\.0 <commit>"):
        command.tag(store, checkout.root, "v1.4.0", older=False)


def test_another_commit_is_not_the_tag(command: ModuleType, checkout: Project, store: Store) -> None:
    (checkout.package / "__init__.py").write_text("ANSWER = 43\n")
    commit(checkout.root, "After the tag")
    with pytest.raises(ReleaseError, match=r"not at v1\.0\.0, whose own builder counts: git checkout v1\.0\.0"):
        command.tag(store, checkout.root, "v1.0.0", older=False)


@pytest.mark.parametrize("name", ["app/src/toy/__init__.py", "notes.txt"])
def test_a_dirty_tree_is_refused(command: ModuleType, checkout: Project, store: Store, name: str) -> None:
    (checkout.root / name).write_text("ANSWER = 43\n")
    with pytest.raises(
        ReleaseError, match=rf"differs from v1\.0\.0 \(.*{name}, 1 in all\).* commit and tag that, or git stash"
    ):
        command.tag(store, checkout.root, "v1.0.0", older=False)


def test_an_unmerged_commit_is_refused(command: ModuleType, checkout: Project, store: Store, tmp_path: Path) -> None:
    git(checkout.root, "switch", "--quiet", "--create", "feature")
    next_tag(checkout, "v1.4.0")
    with pytest.raises(ReleaseError, match=r"v1\.4\.0 is not on main: merge it and tag the merged commit"):
        command.tag(store, checkout.root, "v1.4.0", older=False)
    # In a clone it is the origin's branch that counts, whatever is on one's own.
    git(tmp_path, "clone", "--quiet", "--branch", "feature", str(checkout.root), "clone")
    git(tmp_path / "clone", "branch", "main")
    with pytest.raises(ReleaseError, match=r"v1\.4\.0 is not on origin/main"):
        command.tag(store, tmp_path / "clone", "v1.4.0", older=False)
    git(checkout.root, "branch", "--force", "main")
    git(tmp_path / "clone", "fetch", "--quiet")
    assert command.tag(store, tmp_path / "clone", "v1.4.0", older=False)["version"] == "v1.4.0"


def test_without_a_main_branch_nothing_is_merged(command: ModuleType, checkout: Project, store: Store) -> None:
    git(checkout.root, "branch", "--move", "main", "trunk")
    with pytest.raises(ReleaseError, match="no branch main to hold the tag against: git fetch origin main"):
        command.tag(store, checkout.root, "v1.0.0", older=False)


def test_an_older_version_needs_the_flag(command: ModuleType, checkout: Project, store: Store) -> None:
    next_tag(checkout, "v1.10.0")
    git(checkout.root, "tag", "vanilla")
    git(checkout.root, "checkout", "--quiet", "v1.0.0")
    with pytest.raises(ReleaseError, match=r"v1\.0\.0 is older than v1\.10\.0: if that is meant, say -e older=true"):
        command.tag(store, checkout.root, "v1.0.0", older=False)
    assert command.tag(store, checkout.root, "v1.0.0", older=True)["version"] == "v1.0.0"


def test_the_command_line_says_one_sentence(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ARCHES_RELEASE_KEY"}
    command = [sys.executable, REPOSITORY / "ansible/bin/release.py", "tree"]
    done = subprocess.run(
        [*command, f"--into={tmp_path}", "--public-key=RWQ"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ARCHES_RELEASE_KEY is empty") and done.stderr.count("\n") == 1
