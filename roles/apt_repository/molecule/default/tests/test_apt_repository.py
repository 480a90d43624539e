"""The repository as a client sees it: over TLS only, whole at every moment, and nothing beside it."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from testinfra.host import Host

from lib.scenario import PROJECT, play
from lib.waiting import wait_for

FOLDER = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "apt"


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


@pytest.fixture
def client(host: Host, address: str) -> Iterator[httpx.Client]:
    """Trusts the scenario's CA and nothing else."""
    trust = ssl.create_default_context(cadata=host.file("/etc/arches/tls/ca.crt").content_string)
    with httpx.Client(base_url=f"https://{address}:8443", verify=trust, timeout=10) as found:
        yield found


def versions(client: httpx.Client) -> list[str]:
    """What the list of packages says."""
    lines = client.get("/Packages").raise_for_status().text.splitlines()
    return [line.removeprefix("Version: ") for line in lines if line.startswith("Version: ")]


def publish(version: str) -> None:
    """Make another repository on the controller, and bring it."""
    subprocess.run([sys.executable, PROJECT / "molecule/apt.py", FOLDER, version], check=True, capture_output=True)
    assert sum(play().values()) > 0


def answers(client: httpx.Client) -> bool:
    """Whether the list can be read."""
    try:
        return client.get("/InRelease").status_code == 200
    except httpx.TransportError:
        return False


def test_lists_and_packages_come_over_verified_tls(client: httpx.Client) -> None:
    assert "BEGIN PGP SIGNED MESSAGE" in client.get("/InRelease").text
    assert client.get("/pool/arches-hello_1.0_all.deb").content.startswith(b"!<arch>")


def test_nothing_else_is_served(client: httpx.Client, address: str) -> None:
    assert client.get("/pool/").status_code == 403, "no index of a folder"
    assert client.get("/../../../../etc/passwd").status_code in (400, 404)
    assert client.get("/key").status_code == 404
    assert httpx.get(f"http://{address}:8443/Packages").status_code == 400, "not without TLS"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/")


def test_a_new_repository_takes_the_place_of_the_old_one_as_a_whole(host: Host, client: httpx.Client) -> None:
    master = host.check_output("systemctl show -p MainPID --value nginx")
    publish("1.1")
    assert versions(client) == ["1.1"]
    assert client.get("/pool/arches-hello_1.0_all.deb").status_code == 404
    assert host.check_output("systemctl show -p MainPID --value nginx") == master
    assert len(host.file("/srv/arches/apt/releases").listdir()) == 2, "the one before stays"
    assert sum(play().values()) == 0


def test_an_archive_that_is_not_the_one_named_changes_nothing(host: Host, client: httpx.Client) -> None:
    before = versions(client)
    wrong = {
        "name": "apt",
        "version": "other",
        "archive": sorted(FOLDER.glob("apt-*.tar.gz"))[0].name,
        "sha256": "0" * 64,
    }
    with pytest.raises(AssertionError, match="SHA-256"):
        play(variables={"apt_repository_release": wrong})
    assert versions(client) == before


def test_nginx_comes_back_when_it_is_killed(host: Host, client: httpx.Client) -> None:
    assert answers(client)
    before = host.check_output("systemctl show -p MainPID --value nginx")
    host.run_expect([0], "systemctl kill --signal KILL nginx")
    wait_for(
        "another nginx", lambda: host.check_output("systemctl show -p MainPID --value nginx") not in (before, "0"), 15
    )
    wait_for("the list", lambda: answers(client), timeout_s=15)
