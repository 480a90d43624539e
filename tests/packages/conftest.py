"""The two programs of packages/, as modules, and a program so small that building it takes a second."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """A script of packages/; it is no package."""
    spec = importlib.util.spec_from_file_location(f"packages_{name}", REPOSITORY / "packages" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"packages_{name}"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """packages/build.py."""
    return load("build")


@pytest.fixture(scope="session")
def repository() -> ModuleType:
    """packages/repository.py."""
    return load("repository")


@pytest.fixture(scope="session")
def nfpm(builder: ModuleType) -> Path:
    """The folder of the real tools, from the real cache."""
    cache = builder.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    path: Path = builder.tool("nfpm", "github.com/goreleaser/nfpm/v2/cmd/nfpm", cache)
    return path.parent


@pytest.fixture
def cache(tmp_path: Path, nfpm: Path) -> Path:
    """A cache without packages."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / nfpm.name).symlink_to(nfpm)
    return folder


NFPM = """name: arches-toy
arch: amd64
version: 1.2.3
release: "1"
maintainer: Arches <support@archesai.com>
description: a toy
contents:
  - {src: build/toy, dst: /usr/bin/toy, file_info: {mode: 0755}}
  - {src: toy.service, dst: /usr/lib/systemd/system/toy.service}
scripts:
  postinstall: ../postinstall.sh
"""
MAIN = """package main

import "example.org/dep"

func main() { println(dep.Answer) }
"""


@pytest.fixture
def toy(tmp_path: Path, builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> object:
    """A program with one dependency, which a proxy in a folder serves."""
    served = tmp_path / "proxy" / "example.org" / "dep" / "@v"
    served.mkdir(parents=True)
    (served / "v1.0.0.info").write_text('{"Version": "v1.0.0"}')
    (served / "v1.0.0.mod").write_text("module example.org/dep\n")
    with zipfile.ZipFile(served / "v1.0.0.zip", "w") as archive:
        archive.writestr("example.org/dep@v1.0.0/go.mod", "module example.org/dep\n")
        archive.writestr("example.org/dep@v1.0.0/dep.go", "package dep\n\nconst Answer = 42\n")
    for name, value in (("GOPROXY", f"file://{tmp_path}/proxy"), ("GONOSUMDB", "*"), ("GOMODCACHE", f"{tmp_path}/mod")):
        monkeypatch.setenv(name, value)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "go.mod").write_text("module arches/toy\n\ngo 1.26\n\nrequire example.org/dep v1.0.0\n")
    (folder / "main.go").write_text(MAIN)
    (folder / "nfpm.yml").write_text(NFPM)
    (folder / "toy.service").write_text("[Service]\nExecStart=/usr/bin/toy\n")
    subprocess.run(["go", "mod", "tidy", "-modcacherw"], cwd=folder, check=True, capture_output=True)
    return builder.Package(folder, "arches/toy")
