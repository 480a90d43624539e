"""A package is built once, from what is pinned, or not at all: with one sentence that says what to do."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def test_the_hash_tells_every_change_and_nothing_else(builder: ModuleType, toy: Any) -> None:
    first = toy.digest()
    assert builder.Package(toy.folder, toy.main).digest() == first
    os.utime(toy.folder / "go.mod", (0, 0))
    assert toy.digest() == first, "times are no content"
    seen = {first, builder.Package(toy.folder, toy.main, tags="netgo").digest()}
    for path in sorted(toy.folder.iterdir()):
        path.write_text(path.read_text() + "\n")
        seen.add(toy.digest())
    assert len(seen) == 2 + len(list(toy.folder.iterdir()))


def test_every_program_is_pinned_and_described(builder: ModuleType) -> None:
    for package in builder.PACKAGES:
        files = {path.name for path in package.folder.iterdir()}
        assert {"go.mod", "go.sum", "nfpm.yml", "sysusers.conf"} <= files, package.name
        assert any(name.endswith(".service") for name in files), package.name
        needed = next(line for line in (package.folder / "go.mod").read_text().splitlines() if line.startswith("go "))
        assert tuple(map(int, needed.split()[1].split("."))) <= builder.GO, f"{package.name} asks for a newer Go"


def test_a_build_is_a_whole_package_and_the_second_one_does_nothing(
    builder: ModuleType, toy: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (deb,) = builder.build_all([toy], cache)
    assert deb.name == "arches-toy_1.2.3-1_amd64.deb"
    listed = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/toy" in listed and "toy.service" in listed
    assert "building 1 of 1" in capsys.readouterr().err
    written = deb.stat().st_mtime_ns
    # Not even a toolchain is needed where nothing is to be built.
    monkeypatch.setenv("PATH", "/nonexistent")
    assert builder.build_all([toy], cache) == [deb]
    assert deb.stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""


def test_equal_contents_give_equal_bytes(builder: ModuleType, toy: Any, cache: Path) -> None:
    (deb,) = builder.build_all([toy], cache)
    first = deb.read_bytes()
    deb.unlink()
    deb.parent.rmdir()
    (again,) = builder.build_all([toy], cache)
    assert again.read_bytes() == first


def test_a_wrong_checksum_is_refused(builder: ModuleType, toy: Any, cache: Path) -> None:
    sums = toy.folder / "go.sum"
    altered = [
        line.replace("h1:", "h1:AAAA")[: len(line)].removesuffix("=") + "=" if "/go.mod" not in line else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(altered) + "\n")
    with pytest.raises(
        builder.BuildError, match=r"example\.org/dep@v1\.0\.0 is not the one whose checksum is in go\.sum"
    ):
        builder.build_all([toy], cache)
    assert builder.built(toy, cache) is None


def test_sums_that_miss_a_module_name_the_command(builder: ModuleType, toy: Any, cache: Path) -> None:
    (toy.folder / "go.sum").write_text("")
    with pytest.raises(builder.BuildError, match="Run `go mod tidy` in packages/toy"):
        builder.build_all([toy], cache)


@pytest.mark.parametrize(
    ("version", "says"),
    [(None, "Go 1.26.5 or newer was not found"), ("go1.26.4", "go1.26.4 is too old"), ("devel +1", "is too old")],
)
def test_without_a_go_that_is_new_enough_the_sentence_says_so(
    version: str | None, says: str, builder: ModuleType, toy: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = cache.parent / "bin"
    programs.mkdir()
    if version:
        (programs / "go").write_text(f"#!/bin/sh\necho '{version}'\n")
        (programs / "go").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(builder.BuildError, match=says):
        builder.build_all([toy], cache)


@pytest.fixture
def small(tmp_path: Path, nfpm: Path) -> Iterator[Path]:
    """A cache on a disk of two MiB. Needs root, like the local machines."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    (folder / nfpm.name).symlink_to(nfpm)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_said_before_the_build(builder: ModuleType, toy: Any, small: Path) -> None:
    with pytest.raises(
        builder.BuildError, match=r"0\.0 GiB are free, a build needs 6\. Free some, or set ARCHES_CACHE"
    ):
        builder.build_all([toy], small)


def test_a_disk_that_fills_during_a_build_leaves_nothing_half_done(
    builder: ModuleType, toy: Any, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "require_space", lambda cache: None)
    (toy.folder / "asset").write_bytes(os.urandom(1_500_000))
    with pytest.raises((builder.BuildError, OSError), match=r"full|[Nn]o space left"):
        builder.build_all([toy], small)
    assert [path.name for path in small.iterdir() if path.is_dir() and not path.is_symlink()] == []


def test_two_runs_at_once_build_it_once(
    builder: ModuleType, toy: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, both = threading.Event(), threading.Event()
    compiled: list[str] = []
    real = builder.compile_program

    def slow(package: Any, *rest: Any) -> None:
        compiled.append(package.name)
        inside.set()
        assert both.wait(20)
        real(package, *rest)

    monkeypatch.setattr(builder, "compile_program", slow)
    monkeypatch.setattr(builder, "say", lambda text: both.set() if "waiting" in text else None)
    results: list[list[Path]] = []
    runs = [threading.Thread(target=lambda: results.append(builder.build_all([toy], cache))) for _ in range(2)]
    runs[0].start()
    assert inside.wait(20)
    runs[1].start()
    for run in runs:
        run.join(60)
    assert compiled == ["toy"]
    assert len(results) == 2 and results[0] == results[1] and results[0][0].exists()


def test_a_run_that_was_killed_leaves_nothing_to_the_next(builder: ModuleType, toy: Any, cache: Path) -> None:
    (cache / ".toy-killed" / "build").mkdir(parents=True)
    builder.build_all([toy], cache)
    assert list(cache.glob(".*")) == []


def test_a_failed_build_keeps_the_package_before(builder: ModuleType, toy: Any, cache: Path) -> None:
    (deb,) = builder.build_all([toy], cache)
    before = deb.read_bytes()
    (toy.folder / "main.go").write_text("package main\n\nfunc main() { nothing() }\n")
    with pytest.raises(builder.BuildError, match=r"packages/toy: Go could not build it: .*undefined: nothing"):
        builder.build_all([toy], cache)
    assert deb.read_bytes() == before


def test_the_command_says_one_sentence_and_no_path(
    builder: ModuleType, toy: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy.folder / "go.sum").write_text("")
    monkeypatch.setattr(builder, "PACKAGES", [toy])
    monkeypatch.setattr(builder, "cache_directory", lambda: cache)
    monkeypatch.setattr("sys.argv", ["build.py"])
    assert builder.main() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].endswith("Run `go mod tidy` in packages/toy.")
    monkeypatch.setattr("sys.argv", ["build.py", "--without", "toy"])
    assert builder.main() == 0
    assert capsys.readouterr().out == ""
