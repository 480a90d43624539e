"""A release is built from the checkout, has the same bytes every time, and carries nothing of the builder's machine."""

import hashlib
import importlib.util
import json
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    """The builder; it is a script, not a package."""
    spec = importlib.util.spec_from_file_location("release_builder", REPOSITORY / "ansible/bin/release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release_builder"] = module
    spec.loader.exec_module(module)
    return module


builder = load()


def one_package(lock: Path, name: str) -> str:
    """The lines of one package in a lock file."""
    found = re.search(rf"^{name}==(?:.*\\\n)+.*\n", lock.read_text(), re.MULTILINE)
    assert found is not None, f"{lock} does not lock {name}"
    return found.group()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project: one module, one migration, one locked dependency (pure Python, with a script of its own)."""
    package = tmp_path / "app" / "src" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("ANSWER = 42\n")
    (tmp_path / "app" / "migrations").mkdir()
    (tmp_path / "app" / "migrations" / "0001_start.sql").write_text("SELECT 1;\n")
    (tmp_path / "app" / "pyproject.toml").write_text('[project]\nname = "toy"\nversion = "1.2.3"\n')
    (tmp_path / "app.txt").write_text(one_package(REPOSITORY / "requirements/app.txt", "h11"))
    return tmp_path


def recipe_of(root: Path) -> builder.Recipe:
    """The recipe of the small project."""
    prefix = Path("/opt/toy/releases")
    return builder.Recipe("toy", root / "app", root / "app.txt", {"migrations": root / "app/migrations"}, prefix)


def test_two_builds_give_the_same_bytes(project: Path) -> None:
    first = builder.build(recipe_of(project), project / "one")
    second = builder.build(recipe_of(project), project / "other" / "place")
    assert first == second and first["built"]
    bytes_of = [(folder / first["archive"]).read_bytes() for folder in (project / "one", project / "other" / "place")]
    assert bytes_of[0] == bytes_of[1]
    assert hashlib.sha256(bytes_of[0]).hexdigest() == first["sha256"]


def test_nothing_new_means_nothing_to_do_and_a_change_means_a_new_version(project: Path) -> None:
    recipe = recipe_of(project)
    first = builder.build(recipe, project / "cache")
    (project / "app/src/toy/__pycache__").mkdir()
    (project / "app/src/toy/__pycache__/x.pyc").write_bytes(b"cache")
    assert builder.build(recipe, project / "cache") == {**first, "built": False}
    assert first["version"].startswith("1.2.3+")
    (project / "app/migrations/0002_more.sql").write_text("SELECT 2;\n")
    second = builder.build(recipe, project / "cache")
    assert second["built"] and second["version"] != first["version"]
    assert json.loads((project / "cache/toy.json").read_text())["version"] == second["version"]


def test_a_damaged_archive_is_built_again(project: Path) -> None:
    recipe = recipe_of(project)
    first = builder.build(recipe, project / "cache")
    with (project / "cache" / first["archive"]).open("r+b") as stream:
        stream.truncate(100)
    again = builder.build(recipe, project / "cache")
    assert again["built"] and again["sha256"] == first["sha256"]


def test_an_archive_holds_a_virtual_environment_with_a_true_manifest(project: Path) -> None:
    built = builder.build(recipe_of(project), project / "cache")
    with tarfile.open(project / "cache" / built["archive"]) as tar:
        members = {member.name: member for member in tar}
        contents = {name: tar.extractfile(member).read() for name, member in members.items() if member.isfile()}
    assert members["bin/python3"].linkname == "/usr/bin/python3"
    assert contents["pyvenv.cfg"].startswith(b"home = /usr/bin\n")
    assert contents["release.env"] == f"RELEASE={built['version']}\n".encode()
    assert contents["migrations/0001_start.sql"] == b"SELECT 1;\n"
    site = "lib/python3.13/site-packages"
    assert f"{site}/h11/__init__.py" in contents and f"{site}/toy/__init__.py" in contents
    manifest = json.loads(contents.pop("manifest.json"))
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}
    # A path of this machine would tie the release to it.
    assert not [name for name, data in contents.items() if str(project).encode() in data or sys.prefix.encode() in data]
    compiled = contents[f"{site}/toy/__pycache__/__init__.cpython-313.pyc"]
    assert f"/opt/toy/releases/{built['version']}/{site}/toy/__init__.py".encode() in compiled
    assert compiled[4:8] == b"\x01\x00\x00\x00", "hash-based and unchecked: time stamps do not matter"


def test_a_wheel_with_another_hash_is_refused(project: Path) -> None:
    lock = project / "app.txt"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, lock.read_text()))
    with pytest.raises(builder.ReleaseError, match=r"app\.txt: the wheels could not be installed"):
        builder.build(recipe_of(project), project / "cache")
    assert not list((project / "cache").glob("*")), "nothing half done is left"


def test_an_incomplete_checkout_is_named(project: Path) -> None:
    (project / "app/migrations/0001_start.sql").unlink()
    (project / "app/migrations").rmdir()
    with pytest.raises(builder.ReleaseError, match="migrations is missing"):
        builder.build(recipe_of(project), project / "cache")


def test_old_archives_go(project: Path) -> None:
    for number in range(builder.KEEP + 1):
        (project / "app/src/toy/__init__.py").write_text(f"ANSWER = {number}\n")
        newest = builder.build(recipe_of(project), project / "cache")
    left = sorted(path.name for path in (project / "cache").glob("*.tar.gz"))
    assert len(left) == builder.KEEP and newest["archive"] in left
