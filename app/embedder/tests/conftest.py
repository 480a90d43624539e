"""The release that hosts get, and a service that runs it."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder_service import Service, running

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedder's release, unpacked as on a host."""
    command = ["ansible-playbook", "-i", "inventories/local", "ansible/embedder.yml"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    releases = REPOSITORY / "inventories/local/.state/releases"
    target = tmp_path_factory.mktemp("release")
    with tarfile.open(releases / json.loads((releases / "embedder.json").read_text())["archive"]) as archive:
        archive.extractall(target, filter="tar")
    return target


@pytest.fixture(scope="session")
def service(release: Path) -> Iterator[Service]:
    """A service with the default settings, shared by tests that leave it as it was."""
    with running(release) as one:
        yield one
