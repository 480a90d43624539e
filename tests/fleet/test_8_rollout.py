"""What a rollout refuses, and that it then changes nothing. Rollouts under load: tests/drills/test_rollout.py."""

import datetime
import json
from collections.abc import Iterator

import pytest

from fleet_lock import Claim, Etcd, acquire, context_of, revoke
from lib.fleet import Fleet
from lib.health import Health
from pki import Authority, client_certificate

DEPLOY, ROLLBACK = "ansible/deploy.yml", "ansible/rollback.yml"


@pytest.fixture(scope="module")
def served(health: Health) -> Iterator[Fleet]:
    """The fleet; every process is the same after all of these tests."""
    with health.kept() as fleet:
        before = fleet.unit_starts()
        yield fleet
        assert fleet.unit_starts() == before


def test_what_serves_already_is_not_rolled_out_again(served: Fleet) -> None:
    version = json.loads(served.ssh("api1", "cat /etc/arches/release").stdout)["version"]
    result = served.playbook(DEPLOY, "-e", f"release={version}")
    assert f"{version} serves on api1, api2, api3: nothing to do" in result.output
    assert result.changed == 0


@pytest.fixture
def locked(served: Fleet) -> Iterator[Fleet]:
    """The fleet while somebody else has its lock."""
    authority = Authority((served.state / "ca.key").read_text(), served.ca.read_text())
    own = "".join(client_certificate("controller", authority, datetime.datetime.now(datetime.UTC)))
    port = served.services["etcd_client"]["port"]
    members = {host: f"https://{served.address(host)}:{port}" for host in served.groups["data"]}
    etcd = Etcd(members, context_of(served.ca.read_text(), own))
    lease = acquire(etcd, Claim("anna@ctl1", "a test", "now", "test"), ttl_s=120)
    assert lease is not None
    yield served
    revoke(etcd, lease)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-e", "release=1.4"], "`release` is 1.4: write a version such as v1.4.0"),
        (["-e", "release=v9.9.9"], "no host keeps v9.9.9. Build the release (make release VERSION=v9.9.9)"),
        (["--limit", "api1"], "Leave --limit away"),
    ],
)
def test_a_wrong_request_is_refused_with_the_fix(served: Fleet, arguments: list[str], says: str) -> None:
    result = served.playbook(DEPLOY, *arguments, check=False)
    assert says in " ".join(result.output.split()), result.output[-3000:]
    assert result.changed == 0 and any(counts["failed"] for counts in result.recap.values())


@pytest.mark.parametrize("playbook", [DEPLOY, ROLLBACK, "ansible/migrate.yml"])
def test_whoever_comes_second_is_told_who_is_at_it(locked: Fleet, playbook: str) -> None:
    result = locked.playbook(playbook, "-e", "what=apply", check=False)
    assert "The fleet is locked by anna@ctl1 for a test since now" in " ".join(result.output.split())
    assert result.changed == 0


def test_going_back_to_what_is_not_kept_names_what_is(served: Fleet) -> None:
    result = served.playbook(ROLLBACK, "-e", "release=v9.9.9", check=False)
    assert "v9.9.9 is not kept on every host that answers: choose one of" in " ".join(result.output.split())
    assert result.changed == 0
