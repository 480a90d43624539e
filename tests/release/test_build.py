"""A release is built from sources and locks, has the same bytes each time, and nothing of the builder's machine."""

import hashlib
import json
import re
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from artefact import ReleaseError
from artefact import store as store_module
from artefact.build import Recipe
from artefact.signing import Signer, signature
from artefact.store import KEEP, Store

from .conftest import Project, write_project


def contents_of(store: Store, record: dict[str, object]) -> dict[str, bytes]:
    """Every file of an archive."""
    found = {}
    with tarfile.open(store.folder / str(record["archive"])) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                found[member.name] = stream.read()
    return found


def test_two_builds_give_the_same_bytes(project: Project, tmp_path: Path, signer: Signer) -> None:
    write_project(tmp_path / "elsewhere" / "deep")
    other = Project(tmp_path / "elsewhere" / "deep")
    for path in other.root.rglob("*"):
        path.chmod(0o700)
    one, two = Store(tmp_path / "one", signer), Store(tmp_path / "other" / "place", signer)
    first, second = one.newest(project.recipe, "dev"), two.newest(other.recipe, "dev")
    assert first == second and first["built"]
    for name in (first["archive"], f"{first['archive']}.minisig"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert hashlib.sha256((one.folder / first["archive"]).read_bytes()).hexdigest() == first["sha256"]


def test_nothing_new_means_nothing_to_do_and_a_change_means_a_new_version(project: Project, store: Store) -> None:
    first = store.newest(project.recipe, "dev")
    (project.package / "__pycache__").mkdir()
    (project.package / "__pycache__/x.pyc").write_bytes(b"cache")
    assert store.newest(project.recipe, "dev") == {**first, "built": False}
    assert first["version"].startswith("dev+")
    (project.package / "migrations/0002_more.sql").write_text("SELECT 2;\n")
    second = store.newest(project.recipe, "dev")
    assert second["built"] and second["version"] != first["version"]
    assert store.record("toy") == {key: value for key, value in second.items() if key != "built"}
    # Also back again: the earlier one is still there, and is the newest now.
    (project.package / "migrations/0002_more.sql").unlink()
    assert store.newest(project.recipe, "dev") == {**first, "built": False}
    assert store.record("toy")["version"] == first["version"]


def test_a_damaged_archive_is_built_again(project: Project, store: Store) -> None:
    first = store.newest(project.recipe, "dev")
    with (store.folder / first["archive"]).open("r+b") as stream:
        stream.truncate(100)
    again = store.newest(project.recipe, "dev")
    assert again["built"] and again["sha256"] == first["sha256"]


def test_an_archive_holds_a_virtual_environment_with_a_true_manifest(project: Project, store: Store) -> None:
    (project.package / ".editor").write_text("not ours")
    record = store.newest(project.recipe, "dev")
    with tarfile.open(store.folder / record["archive"]) as tar:
        members = tar.getmembers()
    contents = contents_of(store, record)
    assert members[0].name == "manifest.json", "a host reads it before anything else"
    assert next(member for member in members if member.name == "bin/python3").linkname == "/usr/bin/python3"
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 0)}
    assert contents["pyvenv.cfg"].startswith(b"home = /usr/bin\n")
    assert contents["release.env"] == f"RELEASE={record['version']}\n".encode()
    site = "lib/python3.13/site-packages"
    assert contents[f"{site}/toy/migrations/0001_start.sql"] == b"SELECT 1;\n"
    assert f"{site}/h11/__init__.py" in contents and f"{site}/toy-1.2.3.dist-info/METADATA" in contents
    manifest = json.loads(contents.pop("manifest.json"))
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert manifest["space"] > sum(len(data) for data in contents.values())
    # A path of this machine would tie the release to it, and bytecode to this Python.
    traces = [str(project.root).encode(), str(store.folder).encode(), sys.prefix.encode()]
    assert not [name for name, data in contents.items() if any(trace in data for trace in traces)]
    assert not [name for name in contents if name.endswith((".pyc", "uv_cache.json", "direct_url.json", ".editor"))]


def test_a_wheel_with_another_hash_is_refused(project: Project, store: Store) -> None:
    project.lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, project.lock.read_text()))
    with pytest.raises(ReleaseError, match=r"app\.txt: the wheels could not be installed, and nothing was published"):
        store.newest(project.recipe, "dev")
    assert [path.name for path in store.folder.iterdir()] == [".lock"], "nothing half done is left"


def test_without_a_network_and_with_an_empty_cache_the_reason_is_named(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    # Nobody listens on port 9 of this machine.
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(ReleaseError, match=r"Without a network they have to be in uv's cache\.\n(.|\n)*onnect"):
        store.newest(project.recipe, "dev")
    assert [path.name for path in store.folder.iterdir()] == [".lock"]


def test_an_incomplete_checkout_is_named(project: Project, store: Store, tmp_path: Path) -> None:
    recipe = Recipe("toy", project.root / "app", project.lock, {"model": tmp_path / "model"})
    with pytest.raises(ReleaseError, match="model is missing: a release is built from a complete checkout"):
        store.newest(recipe, "dev")


def test_old_releases_of_working_trees_go(project: Project, store: Store) -> None:
    for number in range(KEEP + 1):
        (project.package / "__init__.py").write_text(f"ANSWER = {number}\n")
        newest = store.newest(project.recipe, "dev")
    left = sorted(path.name for path in store.folder.glob("*.tar.gz"))
    assert len(left) == KEEP and newest["archive"] in left
    # With what belongs to them, and nothing else.
    assert len(list(store.folder.glob("*.minisig"))) == KEEP and len(list(store.folder.glob("toy-*.json"))) == KEEP


def test_without_a_key_nothing_is_published(project: Project, tmp_path: Path, signer: Signer, stranger: Signer) -> None:
    for wrong, says in (
        (Signer(signer.public, stranger.secret), "is not the secret half of release.pub"),
        (Signer(signer.public, "AAAA"), "is no secret key of minisign without a password"),
        (Signer(signer.public, ""), "ARCHES_RELEASE_KEY is empty, and nothing unsigned is published"),
    ):
        store = Store(tmp_path / "store", wrong)
        with pytest.raises(ReleaseError, match=says):
            store.newest(project.recipe, "dev")
        assert [path.name for path in store.folder.iterdir()] == [".lock"]


def test_a_key_in_the_environment_may_be_its_file_or_its_line(
    monkeypatch: pytest.MonkeyPatch, signer: Signer, tmp_path: Path
) -> None:
    for content in (signer.secret, f"untrusted comment: minisign encrypted secret key\n{signer.secret}\n\n"):
        monkeypatch.setenv("ARCHES_RELEASE_KEY", content)
        assert Signer.from_environment(f"{signer.public}\n") == signer
    assert signer.secret not in repr(signer)
    monkeypatch.setenv("ARCHES_RELEASE_KEY", " \n")
    assert not Signer.from_environment(signer.public).secret


def test_what_is_signed_already_needs_no_key(project: Project, store: Store, signer: Signer) -> None:
    first = store.newest(project.recipe, "dev")
    keyless = Store(store.folder, Signer(signer.public, ""))
    assert keyless.newest(project.recipe, "dev") == {**first, "built": False}


def test_a_new_key_signs_what_is_there(project: Project, store: Store, stranger: Signer) -> None:
    first = store.newest(project.recipe, "dev")
    moved = Store(store.folder, stranger)
    assert moved.newest(project.recipe, "dev") == {**first, "built": False}
    assert stranger.trusts(store.folder / first["archive"])
    signature(store.folder / first["archive"]).unlink()
    moved.newest(project.recipe, "dev")
    assert stranger.trusts(store.folder / first["archive"])


def test_two_builds_at_once_make_it_once(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, other_waits = threading.Event(), threading.Event()
    built, made = [], store_module.lay_out

    def slow(*arguments: object) -> dict[str, object]:
        begun.set()
        assert other_waits.wait(30)
        return made(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store_module, "lay_out", slow)
    monkeypatch.setattr("builtins.print", lambda *_, **__: other_waits.set())
    first = threading.Thread(target=lambda: built.append(store.newest(project.recipe, "dev")["built"]))
    first.start()
    assert begun.wait(30)
    built.append(store.newest(project.recipe, "dev")["built"])
    first.join()
    assert sorted(built) == [False, True]


def test_a_build_that_was_cut_off_is_no_release(project: Project, store: Store) -> None:
    first = store.newest(project.recipe, "dev")
    # As if the machine had stopped between the archive's name and its record.
    (store.folder / f"toy-{first['version']}.json").unlink()
    (store.folder / first["archive"]).write_bytes(b"half")
    again = store.newest(project.recipe, "dev")
    assert again["built"] and again["sha256"] == first["sha256"] and store.whole(again)
