"""On a host: what is not signed, not whole or not for it is refused before it is unpacked; a release appears whole or
not at all, `current` is swapped by rename, and old ones go."""

import errno
import json
import os
import platform
import shutil
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from artefact.build import pack, sha256
from artefact.signing import Signer, signature
from lib.plugins import load_plugin


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The host's side of the action `release`, with its markers in a directory of the test."""
    loaded = load_plugin("modules", "release")
    monkeypatch.setattr(loaded, "PENDING", str(tmp_path / "pending"))
    return loaded


class Builder:
    """Makes signed archives of one module each.

    :param root: where they lie; `opt` below it is the host's.
    """

    def __init__(self, root: Path, signer: Signer) -> None:
        self.root = root
        self.signer = signer

    def params(self, version: str, manifest: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """The module's parameters for a version; `manifest` overrides what the manifest says."""
        tree = self.root / "trees" / version
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "bin").mkdir(parents=True)
        (tree / "bin" / "python3").symlink_to("/usr/bin/python3")
        (tree / "toy.py").write_text(f"VERSION = {version!r}\n")
        said = {"name": "toy", "version": version, "commit": "c0ffee", "architecture": platform.machine(),
                "python": "3.13", "space": 1000, **(manifest or {})}  # fmt: skip
        (tree / "manifest.json").write_text(json.dumps(said))
        archive = self.root / f"toy-{version}.tar.gz"
        pack(tree, archive)
        self.signer.sign(archive, version)
        release = {"name": "toy", "version": version, "commit": said["commit"], "archive": archive.name,
                   "sha256": sha256(archive), "size": archive.stat().st_size, "space": 1000}  # fmt: skip
        return {
            "owner": "toy", "root": str(self.root / "opt"), "release": release, "archive": str(archive),
            "signature": signature(archive).read_text(), "public_key": self.signer.public, "activate": True,
            "record": str(self.root / "record"), "keep": 0, **more,
        }  # fmt: skip


@pytest.fixture
def builder(tmp_path: Path, signer: Signer) -> Builder:
    return Builder(tmp_path, signer)


def apply(module: ModuleType, params: dict[str, Any]) -> dict[str, Any]:
    """What the action does: ask, and send the archive when it is wanted."""
    result: dict[str, Any] = module.apply({**params, "archive": None, "signature": ""}, check=False)
    if result["wanted"]:
        result = module.apply(params, check=False)
    return result


def releases(root: Path) -> list[str]:
    """What lies on the host, hidden files too."""
    folder = root / "opt/releases"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_release_is_unpacked_and_made_current_once(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    params = builder.params("1.0")
    asked = module.apply({**params, "archive": None}, check=False)
    assert asked["wanted"] and not (tmp_path / "opt").exists()
    assert module.apply(params, check=False)["changed"]
    assert (tmp_path / "opt/current/toy.py").read_text() == "VERSION = '1.0'\n"
    assert os.readlink(tmp_path / "opt/current/bin/python3") == "/usr/bin/python3"
    assert json.loads((tmp_path / "pending/toy").read_text()) == ["restart"]
    again = module.apply({**params, "archive": None}, check=False)
    assert not again["changed"] and not again["wanted"] and again["recorded"]


def test_it_is_compiled_for_the_place_where_it_lies(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    apply(module, builder.params("1.0"))
    compiled = (tmp_path / "opt/releases/1.0/__pycache__/toy.cpython-313.pyc").read_bytes()
    assert f"{tmp_path}/opt/releases/1.0/toy.py".encode() in compiled
    assert compiled[4:8] == b"\x01\x00\x00\x00", "hash-based and unchecked: time stamps do not matter"


def test_the_host_says_what_it_was_given(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    first = builder.params("1.0")
    apply(module, {**first, "activate": False})
    assert not (tmp_path / "record").exists()
    apply(module, first)
    said = json.loads((tmp_path / "record").read_text())
    assert (said["version"], said["sha256"], said["commit"]) == ("1.0", first["release"]["sha256"], "c0ffee")
    assert said["at"].endswith("+00:00")
    assert not apply(module, first)["changed"]
    assert json.loads((tmp_path / "record").read_text()) == said, "`at` is when it was given"
    for damage in ("", "[]", '{"version": "1.0"}'):
        (tmp_path / "record").write_text(damage)
        result = apply(module, first)
        assert result["changed"] and not result["recorded"]
        assert json.loads((tmp_path / "record").read_text())["version"] == "1.0"
    apply(module, builder.params("2.0"))
    assert json.loads((tmp_path / "record").read_text())["version"] == "2.0"


def test_each_release_keeps_its_record_beside_it(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    first = builder.params("1.0")
    apply(module, {**first, "activate": False})
    kept = tmp_path / "opt/records/1.0.json"
    assert json.loads(kept.read_text()).items() >= first["release"].items()
    # A host that was set up before records were kept.
    kept.unlink()
    assert apply(module, {**first, "activate": False})["changed"] and kept.exists()
    assert not apply(module, {**first, "activate": False})["changed"]


def test_unpacking_alone_leaves_the_running_release(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    apply(module, builder.params("1.0"))
    (tmp_path / "pending/toy").unlink()
    result = apply(module, builder.params("2.0", activate=False))
    assert result["changed"] and result["previous"] == "1.0" and not result["recorded"]
    assert (tmp_path / "opt/current/toy.py").read_text() == "VERSION = '1.0'\n"
    assert not (tmp_path / "pending/toy").exists()
    assert json.loads((tmp_path / "record").read_text())["version"] == "1.0"


def test_check_mode_tells_and_touches_nothing(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    result = module.apply({**builder.params("1.0"), "archive": None}, check=True)
    assert result["changed"] and not result["wanted"] and not (tmp_path / "opt").exists()


def alter(params: dict[str, Any]) -> dict[str, Any]:
    """One byte in the middle is another, and whoever altered it has also written its sum."""
    archive = Path(params["archive"])
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    return {**params, "release": {**params["release"], "sha256": sha256(archive)}}


def damage(params: dict[str, Any]) -> dict[str, Any]:
    """It was cut off on its way."""
    os.truncate(params["archive"], 100)
    return params


def resign(params: dict[str, Any], signer: Signer) -> dict[str, Any]:
    """Somebody else has signed it."""
    signer.sign(Path(params["archive"]), "x")
    return {**params, "signature": signature(Path(params["archive"])).read_text()}


BAD = {
    "cut off": (lambda b, _: damage(b.params("2.0")), r"SHA-256 is .*, not .*: build or fetch it again"),
    "altered": (lambda b, _: alter(b.params("2.0")), "is not signed by the fleet's key, .*verification failed"),
    "unsigned": (lambda b, _: b.params("2.0", signature=""), "is not signed: build it again"),
    "signature is none": (lambda b, _: b.params("2.0", signature="hello\n"), "is not signed by the fleet's key"),
    "wrong key": (lambda b, s: resign(b.params("2.0"), s), "is not signed by the fleet's key, .*key id"),
    "another's signature": (
        lambda b, _: b.params("2.0", signature=b.params("1.9")["signature"]),
        "is not signed by the fleet's key",
    ),
    "another release": (lambda b, _: b.params("2.0", {"name": "x"}), "name is x, and this host needs toy"),
    "another version": (lambda b, _: b.params("2.0", {"version": "1.9"}), "version is 1.9, and this host needs 2.0"),
    "wrong architecture": (
        lambda b, _: b.params("2.0", {"architecture": "riscv64"}),
        "architecture is riscv64, and this host needs",
    ),
    "wrong Python": (lambda b, _: b.params("2.0", {"python": "3.12"}), "python is 3.12, and this host needs 3.13"),
    "no room": (
        lambda b, _: b.params("2.0", {"space": 10**16}),
        r"opt/releases has \d+ MiB left, and the release needs 9536743164 with 200 to spare: free \d+ MiB",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_release_is_refused_before_it_is_unpacked(
    name: str, module: ModuleType, builder: Builder, stranger: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(module, builder.params("1.0"))
    (tmp_path / "pending/toy").unlink()
    make, says = BAD[name]
    params = make(builder, stranger)
    monkeypatch.setattr(module, "unpack", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(module.ReleaseError, match=says):
        apply(module, params)
    assert releases(tmp_path) == ["1.0"]
    assert os.readlink(tmp_path / "opt/current") == "releases/1.0"
    assert not (tmp_path / "pending/toy").exists()
    assert json.loads((tmp_path / "record").read_text())["version"] == "1.0"


def test_without_room_it_does_not_even_travel(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    params = builder.params("1.0")
    params["release"]["space"] = 10**16
    with pytest.raises(module.ReleaseError, match=r"needs 9536743164 with 200 to spare: free \d+ MiB"):
        module.apply({**params, "archive": None}, check=False)
    assert not (tmp_path / "opt").exists()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(
    module: ModuleType, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(module, builder.params("1.0"))

    def full(tar: tarfile.TarFile, path: str, **_: Any) -> None:
        Path(path, "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", f"{path}/other")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        apply(module, builder.params("2.0"))
    assert releases(tmp_path) == ["1.0"]
    monkeypatch.undo()
    monkeypatch.setattr(module, "PENDING", str(tmp_path / "pending"))
    assert apply(module, builder.params("2.0"))["changed"]


def test_a_host_without_minisign_trusts_nothing(
    module: ModuleType, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = builder.params("1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(module.ReleaseError, match="minisign, which checks signatures, is not installed on this host"):
        apply(module, params)
    assert releases(tmp_path) == []


def test_an_archive_without_a_manifest_is_no_release(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    params = builder.params("1.0")
    with tarfile.open(params["archive"], "w:gz") as tar:
        tar.add(tmp_path / "trees/1.0/toy.py", "toy.py")
    builder.signer.sign(Path(params["archive"]), "1.0")
    params["signature"] = signature(Path(params["archive"])).read_text()
    params["release"]["sha256"] = sha256(Path(params["archive"]))
    with pytest.raises(module.ReleaseError, match="does not begin with a manifest"):
        apply(module, params)


def test_without_a_key_the_checksum_counts(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    """For what carries signatures of its own, as the apt repository does."""
    params = builder.params("1.0", public_key=None, signature="", record=None)
    with pytest.raises(module.ReleaseError, match="SHA-256"):
        apply(module, {**params, "release": {**params["release"], "sha256": "0" * 64}})
    assert apply(module, params)["changed"]
    assert not apply(module, params)["changed"]


def test_what_a_cut_off_run_left_is_replaced(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    partial = tmp_path / "opt/releases/.1.0.partial"
    partial.mkdir(parents=True)
    (partial / "half").write_text("half")
    (tmp_path / "opt/current.new").symlink_to("nowhere")
    apply(module, builder.params("1.0"))
    assert releases(tmp_path) == ["1.0"]
    assert not (tmp_path / "opt/releases/1.0/half").exists()


def test_an_owed_action_of_another_kind_is_kept(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending/toy").write_text('["daemon_reload"]')
    apply(module, builder.params("1.0"))
    assert json.loads((tmp_path / "pending/toy").read_text()) == ["daemon_reload", "restart"]


def test_the_five_last_used_stay_and_only_when_told_to_go(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    for number in range(7):
        apply(module, builder.params(f"1.{number}"))
        stamp = 1_000_000 + number
        os.utime(tmp_path / f"opt/releases/1.{number}", (stamp, stamp))
    # It was unpacked last, and nobody has ever used it.
    apply(module, builder.params("2.0", activate=False))
    assert len(releases(tmp_path)) == 8
    assert apply(module, builder.params("1.6", keep=5))["changed"]
    assert releases(tmp_path) == ["1.2", "1.3", "1.4", "1.5", "1.6"]
    assert sorted(path.stem for path in (tmp_path / "opt/records").iterdir()) == releases(tmp_path)
    assert not apply(module, builder.params("1.6", keep=5))["changed"]


def test_the_release_before_stays_however_old_it_is(module: ModuleType, builder: Builder, tmp_path: Path) -> None:
    apply(module, builder.params("1.0"))
    os.utime(tmp_path / "opt/releases/1.0", (1, 1))
    for number in range(6):
        (tmp_path / f"opt/releases/0.{number}").mkdir()
    apply(module, builder.params("2.0", keep=2))
    assert releases(tmp_path) == ["1.0", "2.0"]
