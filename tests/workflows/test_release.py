"""The real release workflow, run by act on this computer: a pushed tag serves on the local fleet, a bad one does not.

The local fleet is staging, and then production. It takes some ten minutes: `make test-full`.
"""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib.fleet import REPOSITORY, Fleet, local_fleet
from lib.go_tools import program
from lib.variants import VARIANTS, change

ACTIONS = Path(__file__).parent / "actions"


@dataclass
class Checkout:
    """A clone of this repository with an origin of its own, on this computer's fleet."""

    folder: Path
    fleet: Fleet

    def git(self, *words: str) -> str:
        """What git prints. Raises CalledProcessError."""
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        done = subprocess.run(["git", *author, *words], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def release(self, version: str) -> None:
        """What a person does: merge, tag, push."""
        self.git("commit", "--quiet", "--all", "--allow-empty", "-m", f"Release {version}")
        self.git("push", "--quiet", "origin", "HEAD:main")
        self.git("tag", version)
        self.git("push", "--quiet", "origin", version)
        self.git("fetch", "--quiet")

    def act(self, version: str, artifacts: Path) -> subprocess.CompletedProcess[str]:
        """What GitHub does then, up to the rollout to production."""
        event = self.folder.parent / "event.json"
        event.write_text(json.dumps({"ref": f"refs/tags/{version}", "ref_name": version, "ref_type": "tag"}))
        text = (self.folder / ".github/workflows/rollout.yml").read_text()
        text += (self.folder / ".github/workflows/release.yml").read_text()
        stand_ins = [
            f"--local-repository={used}={ACTIONS / used.partition('/')[2].partition('@')[0]}"
            for used in sorted(set(re.findall(r"actions/(?:up|down)load-artifact@[0-9a-f]{40}", text)))
        ]
        command = [
            program("act"), "push", "--eventpath", event, "--workflows", ".github/workflows/release.yml",
            "--job", "production", "--platform", "ubuntu-24.04=-self-hosted", "--rm", "--use-gitignore=false",
            "--var", "STAGING=local", "--var", "PRODUCTION=local", "--env", f"ARCHES_ARTIFACTS={artifacts}",
            *stand_ins,
        ]  # fmt: skip
        key = (self.fleet.state / "release.key").read_text().strip()
        secrets = {"ARCHES_RELEASE_KEY": key, "ARCHES_VAULT_PASSWORD": "none"}
        command += [word for name in secrets for word in ("--secret", name)]
        environment = os.environ | secrets
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=1500
        )


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """The local fleet, as the environments that the workflow rolls out to."""
    return local_fleet()


@pytest.fixture
def checkout(tmp_path: Path, fleet: Fleet) -> Checkout:
    """A fresh clone, with what this computer has already: the environment and the fleet's state."""
    subprocess.run(["git", "clone", "--quiet", "--bare", REPOSITORY, tmp_path / "origin.git"], check=True)
    subprocess.run(["git", "clone", "--quiet", tmp_path / "origin.git", tmp_path / "work"], check=True)
    folder = tmp_path / "work"
    (folder / ".venv").symlink_to(REPOSITORY / ".venv")
    (folder / "inventories/local/.state").symlink_to(fleet.state.resolve())
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/exclude").write_text(".venv\ninventories/local/.state\n")
    return Checkout(folder, fleet)


def serving(fleet: Fleet) -> set[str]:
    """The versions that the API hosts serve."""
    said = [json.loads(fleet.ssh(host, "arches-rollout status").stdout) for host in fleet.groups["api"]]
    return {version for answer in said for version in answer["serving"]}


def new_version() -> str:
    """A version that no host has ever seen."""
    return f"v0.1.{int(time.time())}"


def test_a_pushed_tag_serves(checkout: Checkout, fleet: Fleet, tmp_path: Path) -> None:
    version = new_version()
    checkout.release(version)
    done = checkout.act(version, tmp_path / "artifacts")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert serving(fleet) == {version}
    # The same bytes once more, to what stands for production: nothing to do.
    assert done.stdout.count(f"{version} serves on api1, api2, api3: nothing to do") == 1, done.stdout[-6000:]
    assert "FAIL" not in done.stdout


def test_a_release_that_fails_its_gate_leaves_the_fleet_as_it_was(
    checkout: Checkout, fleet: Fleet, tmp_path: Path
) -> None:
    before = serving(fleet)
    change(checkout.folder, "does_not_start")
    assert VARIANTS["does_not_start"][0] in checkout.git("status", "--porcelain")
    version = new_version()
    checkout.release(version)
    done = checkout.act(version, tmp_path / "artifacts")
    assert done.returncode != 0
    assert f"{version} was not rolled out" in done.stdout, done.stdout[-6000:]
    assert "production" not in re.findall(r"\[release/(\w+)", done.stdout), "it never came so far"
    assert serving(fleet) == before
