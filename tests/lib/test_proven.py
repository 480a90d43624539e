"""What was proven is proven until something that counts has changed, or a month is over; CI tries what has changed."""

import os
import subprocess
import time
from pathlib import Path

import pytest

import changed_roles
from lib import proven
from lib.fleet import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a few roles: redis names the part `lib.waiting`, api a playbook which names the role nginx."""
    for name, content in {
        "roles/redis/tasks/main.yml": "",
        "roles/redis/molecule/default/tests/test_redis.py": "from lib.waiting import wait_for",
        "roles/api/molecule/default/prepare.yml": "import_playbook: ../../../../ansible/release.yml  # of ../app/src",
        "roles/nginx/tasks/main.yml": "# As ansible/release.yml has it, with the role api.",
        "roles/grafana/molecule/default/molecule.yml": "dashboards: ../../monitoring/dashboards",
        "roles/s3/molecule/default/converge.yml": "roles: [{role: certificates}]",
        "roles/certificates/tasks/main.yml": "",
        "roles/certificates/molecule/default/converge.yml": "",
        "molecule/prepare.yml": "",
        "tests/lib/waiting.py": "",
        "tests/lib/drill.py": "",
        "docs/page.md": "",
        "ansible/plugins/modules/pool.py": "",
        "ansible/release.yml": "role: nginx",
        "app/src/api.py": "",
        "monitoring/dashboards/api.json": '"playbook": "ansible/release.yml"',
        "inventories/shared/services.yml": "",
        "inventories/local/hosts.yml": "",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


ALL = {"redis", "api", "nginx", "grafana", "s3", "certificates"}


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("roles/redis/tasks/main.yml", {"redis"}),
        ("roles/redis/tasks/new.yml", {"redis"}),
        ("tests/lib/waiting.py", {"redis"}),
        ("roles/certificates/molecule/default/converge.yml", {"certificates"}),
        ("tests/lib/drill.py", set()),
        ("roles/certificates/tasks/main.yml", {"certificates", "s3"}),
        ("roles/nginx/tasks/main.yml", {"nginx", "api"}),
        # Scenarios run playbooks, too.
        ("ansible/release.yml", {"api"}),
        ("monitoring/dashboards/api.json", {"grafana"}),
        ("molecule/prepare.yml", ALL),
        ("ansible/plugins/modules/pool.py", ALL),
        ("inventories/shared/services.yml", ALL),
        ("a_new_place/file", ALL),
        ("docs/page.md", set()),
        ("app/src/api.py", {"api"}),
        ("app/tests/test_api.py", set()),
        ("inventories/local/hosts.yml", set()),
    ],
)
def test_what_a_scenario_reads_counts(checkout: Path, name: str, roles: set[str]) -> None:
    def all_inputs() -> dict[str, str]:
        proven.parts.cache_clear()
        return {role: proven.inputs(role, checkout) for role in ALL}

    before = all_inputs()
    assert all_inputs() == before
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("after")
    assert {role for role, now in all_inputs().items() if now != before[role]} == roles


def test_ci_tries_the_roles_that_changed_since_the_branch_began(checkout: Path) -> None:
    def commit(name: str) -> None:
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
        changed_roles.git("add", ".", root=checkout)
        changed_roles.git(*author, "commit", "--quiet", "-m", name, root=checkout)

    for role in ("s3", "certificates", "redis"):
        (checkout / f"roles/{role}/molecule/default").mkdir(parents=True, exist_ok=True)
        (checkout / f"roles/{role}/molecule/default/molecule.yml").touch()
    commit("docs/page.md")
    changed_roles.git("switch", "--quiet", "--create", "branch", root=checkout)
    commit("roles/certificates/tasks/main.yml")
    changed_roles.git("switch", "--quiet", "-", root=checkout)
    # What others did meanwhile is theirs.
    commit("roles/redis/tasks/main.yml")
    main = changed_roles.git("rev-parse", "HEAD", root=checkout)
    changed_roles.git("switch", "--quiet", "branch", root=checkout)
    assert changed_roles.changed(main, checkout) == ["certificates", "s3"]
    assert changed_roles.git("worktree", "list", root=checkout).count("\n") == 0
    with pytest.raises(subprocess.CalledProcessError):
        changed_roles.changed("no-such-commit", checkout)


def test_every_module_that_a_scenario_imports_is_among_its_inputs() -> None:
    """Held against this repository: the names that are looked for are those that are written."""
    for role, modules in (("pool_guard", {"history", "waiting"}), ("collector", {"loki"})):
        assert {f"tests/lib/{module}.py" for module in modules} <= proven.parts(REPOSITORY)[
            f"roles/{role}/molecule/"
        ].names
    assert proven.PLAYBOOKS in proven.parts(REPOSITORY)["roles/api/molecule/"].names


@pytest.fixture
def nothing_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "MARKS", tmp_path)
    monkeypatch.setattr(proven, "RECORD", tmp_path / "record" / "roles.txt")
    monkeypatch.delenv("FRESH", raising=False)


@pytest.mark.usefixtures("nothing_proven")
def test_it_holds_for_a_month_and_is_the_roles_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proven.proven("redis", "default") == ""
    (tmp_path / "redis-default-0123").touch()
    proven.remember("redis", "default")
    assert proven.proven("redis", "default") != "" and len(list(tmp_path.iterdir())) == 1
    assert proven.proven("redis", "ha") == proven.proven("nginx", "default") == ""
    monkeypatch.setenv("FRESH", "1")
    assert proven.proven("redis", "default") == ""
    monkeypatch.delenv("FRESH")
    long_ago = time.time() - 31 * 86400
    os.utime(proven.mark("redis", "default"), (long_ago, long_ago))
    assert proven.proven("redis", "default") == ""


@pytest.mark.usefixtures("nothing_proven")
def test_what_is_recorded_holds_on_any_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    proven.remember("redis", "default")
    at = proven.proven("redis", "default")
    proven.record([("redis", "default"), ("nginx", "default")])
    proven.mark("redis", "default").unlink()
    assert proven.proven("redis", "default") == at
    assert proven.proven("nginx", "default") == ""
    # What is recorded is not lost where it was not proven again.
    proven.record([("redis", "default")])
    assert proven.proven("redis", "default") == at
    proven.RECORD.write_text(proven.RECORD.read_text().replace("redis-default-", "redis-default-0"))
    assert proven.proven("redis", "default") == "", "with other inputs"
    proven.RECORD.write_text(f"{proven.mark('redis', 'default').name} 2026-01-01 00:00 UTC\n")
    assert proven.proven("redis", "default") == "", "too long ago"
