"""What apt on a client takes, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from testinfra.host import Host

from lib.scenario import PROJECT, machine, play

FOLDER = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "apt"
CONVERGE = Path(__file__).parents[1] / "converge.yml"
SOURCE = "/etc/apt/sources.list.d/arches.sources"


@pytest.fixture(scope="module")
def client() -> Host:
    return machine("client")


def publish(*arguments: str) -> None:
    """Make another repository on the controller: version, and name of the key."""
    command = [sys.executable, PROJECT / "molecule/apt.py", FOLDER, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def update(client: Host, *options: str) -> tuple[int, str]:
    """Read the fleet's list only; exit status and what apt said. Any failure is an error, not a warning."""
    words = [
        f"Dir::Etc::sourcelist={SOURCE}",
        "Dir::Etc::sourceparts=/dev/null",
        "APT::Update::Error-Mode=any",
        *options,
    ]
    done = client.run("apt-get update " + " ".join(f"-o {word}" for word in words))
    return done.rc, done.stdout + done.stderr


def installed(client: Host) -> str:
    """The version that is installed."""
    return str(client.check_output("cat /usr/share/arches-hello"))


def test_a_package_comes_from_the_repository(client: Host) -> None:
    client.run_expect([0], "apt-get install -y arches-hello")
    assert installed(client) == "1.0"


def test_a_new_version_is_known_as_soon_as_the_role_has_run(client: Host) -> None:
    publish("1.1")
    assert play(CONVERGE)["client"] > 0
    client.run_expect([0], "apt-get install -y arches-hello")
    assert installed(client) == "1.1"
    assert sum(play(CONVERGE).values()) == 0


def test_the_fleets_own_source_is_pinned_above_others(client: Host) -> None:
    policy = client.check_output("apt-cache policy arches-hello")
    assert "900" in policy and "https://packages:8443" in policy


def test_the_server_must_show_a_certificate_of_our_authority(client: Host) -> None:
    code, said = update(client)
    assert code == 0, said
    code, said = update(client, "Acquire::https::packages::CAInfo=/etc/ssl/certs/ca-certificates.crt")
    assert code != 0 and "certificate" in said.lower(), said


def test_what_another_key_has_signed_is_refused(client: Host) -> None:
    """Somebody who can write to the server, and cannot sign, puts a newer package there."""
    key = (FOLDER / "apt.asc").read_text()
    publish("9.9", "stolen")
    play(CONVERGE, None, "--limit", "packages")
    code, said = update(client)
    assert code != 0 and ("NO_PUBKEY" in said or "not signed" in said or "signature" in said.lower()), said
    client.run_expect([0], "apt-get install -y arches-hello")
    assert installed(client) == "1.1"
    assert key != (FOLDER / "apt.asc").read_text(), "the other key was never used: this proves nothing"
    publish("1.1")
    play(CONVERGE)


def test_a_source_that_cannot_be_read_fails_the_run_and_is_tried_again(client: Host) -> None:
    nobody = [{"name": "gone", "uri": "https://packages:8444", "suite": "./", "components": [], "key": "no key"}]
    with pytest.raises(AssertionError):
        play(CONVERGE, {"apt_sources_repositories": nobody})
    assert client.file("/var/lib/arches/pending/apt_sources").exists
    assert play(CONVERGE)["client"] > 0
    assert not client.file("/var/lib/arches/pending/apt_sources").exists
    assert update(client)[0] == 0
