"""On a host a release appears whole or not at all, `current` is swapped by rename, and old ones go."""

import hashlib
import importlib.util
import json
import os
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The host's side of the action `release`, with its markers in a directory of the test."""
    spec = importlib.util.spec_from_file_location("release_module", REPOSITORY / "ansible/plugins/modules/release.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(loaded, "PENDING", str(tmp_path / "pending"))
    return loaded


def wanted(root: Path, version: str, **more: Any) -> dict[str, Any]:
    """Parameters for a version, with an archive that carries its name."""
    archive = root / f"{version}.tar.gz"
    (root / "content").write_text(version)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "content", "content")
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        tar.addfile(link)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    base = {"owner": "toy", "root": str(root / "opt"), "version": version, "sha256": digest, "archive": str(archive)}
    return {**base, "activate": True, "keep": 5, **more}


def test_a_release_is_unpacked_and_made_current_once(module: ModuleType, tmp_path: Path) -> None:
    params = wanted(tmp_path, "1.0")
    asked = module.apply({**params, "archive": None}, check=False)
    assert asked["wanted"] and not (tmp_path / "opt").exists()
    assert module.apply(params, check=False)["changed"]
    assert (tmp_path / "opt/current/content").read_text() == "1.0"
    assert os.readlink(tmp_path / "opt/current/bin/python3") == "/usr/bin/python3"
    assert json.loads((tmp_path / "pending/toy").read_text()) == ["restart"]
    again = module.apply({**params, "archive": None}, check=False)
    assert not again["changed"] and not again["wanted"]


def test_unpacking_alone_leaves_the_running_release(module: ModuleType, tmp_path: Path) -> None:
    module.apply(wanted(tmp_path, "1.0"), check=False)
    (tmp_path / "pending/toy").unlink()
    result = module.apply(wanted(tmp_path, "2.0", activate=False), check=False)
    assert result["changed"] and result["previous"] == "1.0"
    assert (tmp_path / "opt/current/content").read_text() == "1.0"
    assert not (tmp_path / "pending/toy").exists()


def test_check_mode_tells_and_touches_nothing(module: ModuleType, tmp_path: Path) -> None:
    result = module.apply({**wanted(tmp_path, "1.0"), "archive": None}, check=True)
    assert result["changed"] and not result["wanted"] and not (tmp_path / "opt").exists()


def test_an_archive_that_is_not_the_built_one_is_refused(module: ModuleType, tmp_path: Path) -> None:
    module.apply(wanted(tmp_path, "1.0"), check=False)
    params = wanted(tmp_path, "2.0")
    Path(params["archive"]).write_bytes(b"something else")
    with pytest.raises(module.ReleaseError, match=r"SHA-256 .* Run ansible/release\.yml again"):
        module.apply(params, check=False)
    assert (tmp_path / "opt/current/content").read_text() == "1.0"
    assert not (tmp_path / "opt/releases/2.0").exists()


def test_what_a_cut_off_run_left_is_replaced(module: ModuleType, tmp_path: Path) -> None:
    partial = tmp_path / "opt/releases/.1.0.partial"
    partial.mkdir(parents=True)
    (partial / "half").write_text("half")
    (tmp_path / "opt/current.new").symlink_to("nowhere")
    module.apply(wanted(tmp_path, "1.0"), check=False)
    assert sorted(path.name for path in (tmp_path / "opt/releases/1.0").iterdir()) == ["bin", "content"]
    assert not partial.exists()


def test_an_owed_action_of_another_kind_is_kept(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending/toy").write_text('["daemon_reload"]')
    module.apply(wanted(tmp_path, "1.0"), check=False)
    assert json.loads((tmp_path / "pending/toy").read_text()) == ["daemon_reload", "restart"]


def test_the_five_last_used_stay(module: ModuleType, tmp_path: Path) -> None:
    for number in range(7):
        module.apply(wanted(tmp_path, f"1.{number}"), check=False)
        stamp = 1_000_000 + number
        os.utime(tmp_path / f"opt/releases/1.{number}", (stamp, stamp))
    left = sorted(path.name for path in (tmp_path / "opt/releases").iterdir())
    assert left == ["1.2", "1.3", "1.4", "1.5", "1.6"]
