"""What was proven is proven until something that counts has changed, or a week is over."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from lib import proven


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a role and a page."""
    for name in (
        "roles/redis/tasks/main.yml",
        "docs/page.md",
        "ansible/plugins/modules/pool.py",
        "ansible/release.yml",
        "inventories/local/hosts.yml",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("roles/redis/tasks/main.yml", True),
        ("roles/redis/tasks/new.yml", True),
        ("ansible/plugins/modules/pool.py", True),
        # Scenarios run playbooks, too.
        ("ansible/release.yml", True),
        ("docs/page.md", False),
        ("inventories/local/hosts.yml", False),
    ],
)
def test_what_a_scenario_reads_counts(checkout: Path, name: str, counts: bool) -> None:
    before = proven.inputs(checkout)
    proven.inputs.cache_clear()
    assert proven.inputs(checkout) == before
    (checkout / name).write_text("after")
    proven.inputs.cache_clear()
    assert (proven.inputs(checkout) != before) == counts


def test_it_holds_for_a_week_and_is_the_roles_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "MARKS", tmp_path)
    monkeypatch.delenv("FRESH", raising=False)
    assert proven.proven("redis", "default") == ""
    (tmp_path / "redis-default-0123").touch()
    proven.remember("redis", "default")
    assert proven.proven("redis", "default") != "" and len(list(tmp_path.iterdir())) == 1
    assert proven.proven("redis", "ha") == proven.proven("nginx", "default") == ""
    monkeypatch.setenv("FRESH", "1")
    assert proven.proven("redis", "default") == ""
    monkeypatch.delenv("FRESH")
    long_ago = time.time() - 8 * 86400
    os.utime(proven.mark("redis", "default"), (long_ago, long_ago))
    assert proven.proven("redis", "default") == ""
