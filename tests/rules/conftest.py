"""The repository itself, and synthetic ones on which every rule must be able to fail."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rules.repository import Repository

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository() -> Repository:
    """The repository as it stands in this checkout."""
    return Repository.of_git(ROOT)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, str]], Repository]:
    """A function that writes files (path: content) and returns them as a repository."""

    def write(files: Mapping[str, str]) -> Repository:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return Repository.of_folder(tmp_path)

    return write


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every rule of a module's BROKEN table runs on the repository, and on each synthetic tree that breaks it."""
    broken = getattr(metafunc.module, "BROKEN", [])
    if {"rule", "files", "says"} <= set(metafunc.fixturenames):
        metafunc.parametrize(
            ("rule", "files", "says"), broken, ids=[f"{b[0].__name__}-{n}" for n, b in enumerate(broken)]
        )
    elif "rule" in metafunc.fixturenames:
        rules = list(dict.fromkeys(rule for rule, _, _ in broken))
        metafunc.parametrize("rule", rules, ids=[rule.__name__ for rule in rules])
