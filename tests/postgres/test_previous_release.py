"""The release before works on the schema to come: its own tests run on a database with this tree's migrations.

Between a migration and the end of a rollout, and after a rollback, that is so in production (docs/releases.md).
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lib.fleet import REPOSITORY

MIGRATIONS = "app/src/arches_api/migrations"
# What users do; the others are about the release itself and what is around it.
WANTED = ("test_artifacts.py", "test_auth.py::test_the_story", "test_idempotency.py")
# What comes of these depends on this computer's load, not on the schema: how fast something is cut off, and whether a
# COMMIT that lost its connection went through, which a release before took for certain.
TIMED = "unknown_length or lost_commit"


def git(*words: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def before() -> str:
    """The newest tag before this commit; where none was made, the commit before the newest change of the schema.

    A clone without history has only itself to compare with.
    """
    tags = [tag for tag in git("tag", "--merged", "HEAD", "--sort=-version:refname", "v*").splitlines() if tag]
    here = git("rev-parse", "HEAD")
    tag = next((tag for tag in tags if git("rev-parse", f"{tag}^{{commit}}") != here), "")
    changed = git("log", "-1", "--format=%H", "--", MIGRATIONS)
    return tag or git("rev-parse", "--verify", f"{changed}^") or here


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application of the release before, with this tree's migrations."""
    folder, commit = tmp_path_factory.mktemp("earlier"), before()
    print(f"the release before is {commit}")
    packed = subprocess.run(
        ["git", "archive", commit, "app", "tests/lib", "pyproject.toml"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    shutil.rmtree(folder / MIGRATIONS)
    shutil.copytree(REPOSITORY / MIGRATIONS, folder / MIGRATIONS)
    return folder


def its_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what the release before has of the wanted tests."""
    files = [
        test for name in WANTED if (folder / (test := f"app/tests/integration/{name}").partition("::")[0]).exists()
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({TIMED})", *files],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder / "app/src")}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_the_release_before_works_on_the_new_schema(earlier: Path) -> None:
    done = its_tests(earlier)
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-4000:]


def test_a_schema_that_breaks_it_is_found(earlier: Path) -> None:
    """What this would say of a migration that takes something away which the release before uses."""
    number = len(list((earlier / MIGRATIONS).glob("*.sql"))) + 1
    wrong = earlier / MIGRATIONS / f"{number:04d}_wrong.sql"
    wrong.write_text("ALTER TABLE artifacts RENAME COLUMN name TO title;\n")
    try:
        done = its_tests(earlier)
    finally:
        wrong.unlink()
    assert done.returncode != 0 and "failed" in done.stdout, (done.stdout + done.stderr)[-4000:]
