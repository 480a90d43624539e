"""A small project that becomes a release in a second, and keys to sign it."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from artefact.build import Recipe
from artefact.signing import Signer, new_key
from artefact.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = """
[project]
name = "toy"
version = "1.2.3"
requires-python = ">=3.13"

[build-system]
requires = ["uv_build>=0.13,<0.14"]
build-backend = "uv_build"

[tool.uv.build-backend]
module-root = "src"
module-name = "toy"
"""


def one_package(name: str) -> str:
    """The lines of one package in the API's lock file."""
    lock = (REPOSITORY / "requirements/app.txt").read_text()
    found = re.search(rf"^{name}==(?:.*\\\n)+.*\n", lock, re.MULTILINE)
    assert found is not None, f"requirements/app.txt does not lock {name}"
    return found.group()


def write_project(root: Path) -> None:
    """One module with one migration, one locked dependency (pure Python), laid out as this repository is."""
    package = root / "app" / "src" / "toy"
    (package / "migrations").mkdir(parents=True)
    (package / "__init__.py").write_text("ANSWER = 42\n")
    (package / "migrations" / "0001_start.sql").write_text("SELECT 1;\n")
    (root / "app" / "pyproject.toml").write_text(PYPROJECT)
    (root / "requirements").mkdir()
    (root / "requirements" / "app.txt").write_text(one_package("h11"))


@dataclass(frozen=True)
class Project:
    """The small project."""

    root: Path

    @property
    def package(self) -> Path:
        return self.root / "app" / "src" / "toy"

    @property
    def lock(self) -> Path:
        return self.root / "requirements" / "app.txt"

    @property
    def recipe(self) -> Recipe:
        return Recipe("toy", self.root / "app", self.lock)


def make_signer(folder: Path, name: str) -> Signer:
    """A signer with a key of its own."""
    new_key(folder / f"{name}.key")
    return Signer((folder / f"{name}.pub").read_text().strip(), (folder / f"{name}.key").read_text().strip())


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """The fleet's key."""
    return make_signer(tmp_path_factory.mktemp("keys"), "fleet")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """A key that no host trusts."""
    return make_signer(tmp_path_factory.mktemp("strangers"), "stranger")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, ready to be built."""
    write_project(tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def store(tmp_path: Path, signer: Signer) -> Store:
    """An empty folder of releases."""
    return Store(tmp_path / "store", signer)
