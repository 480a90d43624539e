"""Releases come and go while people outside work with the API (tests/drills/rollout): whom does it cost a request?"""

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drills.rollout.judge import Allowance, complaints, is_failure
from drills.rollout.load import Load, Stored
from lib.fleet import Fleet
from lib.postgres import sql
from lib.variants import LEVEL, UNDO, publish
from lib.waiting import wait_for

DEPLOY, ROLLBACK, MIGRATE = "ansible/deploy.yml", "ansible/rollback.yml", "ansible/migrate.yml"
# As `make site` and `make scale` do it.
GENTLY = ["--forks", str(os.cpu_count())]

Record = Callable[[str, object], None]


def serving(fleet: Fleet) -> set[str]:
    """The versions that the API hosts serve, as every one of their instances says."""
    said = [json.loads(fleet.ssh(host, "arches-rollout status").stdout) for host in fleet.groups["api"]]
    assert all(answer["rollout"] is None for answer in said), said
    return {version for answer in said for version in answer["serving"]}


# No failure, and nobody waits for longer than the API itself does for a connection to Postgres. How long it was is in
# docs/drills, beside how long it should be.
NOBODY = Allowance(failures=0, worst_s=10, gap_s=10)


def clean(load: Load, record_property: Record) -> None:
    """Nobody was refused or kept waiting for long, and all that was acknowledged is there once, as it was sent."""
    record_property("p99_ms", load.verdict.p99_ms)
    record_property("worst_ms", load.verdict.worst_ms)
    record_property("retries", load.verdict.retries)
    kept(load)
    assert load.verdict.requests > 200
    assert not list(complaints(load.verdict, NOBODY))


def kept(load: Load) -> None:
    """Everything that was acknowledged is there once, as it was sent."""
    assert load.stored == Stored()


def test_a_release_and_the_way_back_cost_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, repeat: int
) -> None:
    [before] = serving(healthy)
    version = publish(healthy, "good")
    with Load(healthy, f"deploy-and-rollback-{repeat}", tmp_path) as load:
        healthy.playbook(DEPLOY, "-e", f"release={version}")
        load.mark("deployed")
        assert serving(healthy) == {version}
        said = healthy.playbook(ROLLBACK)
        load.mark("back")
    assert f"{before} serves on" in said.output and serving(healthy) == {before}
    clean(load, record_property)
    # Recorded on the ops host: who, when, from where to where.
    lines = healthy.ssh("ops1", "cat /var/lib/arches/records/deployments.jsonl").stdout.splitlines()
    assert [json.loads(line)["release"]["version"] for line in lines[-2:]] == [version, before]


BAD = [
    # What its own proof finds never gets a request; the others are found while the first host is watched.
    pytest.param("errors", r"of its \d+ answers were errors", id="errors"),
    pytest.param("does_not_start", "this release does not start", id="does_not_start", marks=pytest.mark.long),
    pytest.param("leaks", "does not serve: .* answered 503", id="leaks", marks=pytest.mark.long),
    pytest.param("slow", "its (median|99th percentile) is", id="slow", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("name", "says"), BAD)
def test_a_bad_release_puts_itself_back(
    healthy: Fleet, tmp_path: Path, record_property: Record, name: str, says: str, repeat: int
) -> None:
    [before] = serving(healthy)
    version = publish(healthy, name)
    with Load(healthy, f"bad-{name}-{repeat}", tmp_path) as load:
        result = healthy.playbook(DEPLOY, "-e", f"release={version}", check=False)
    output = " ".join(result.output.split())
    assert f"{version} was not rolled out" in output and re.search(says, output), result.output[-4000:]
    assert serving(healthy) == {before}
    assert all(f"{host} serves {before}" in output for host in healthy.groups["api"])
    failed = [line for line in load.lines if is_failure(line)]
    record_property("failures", len(failed))
    elsewhere = [line for line in failed if line["served_by"] != "api1"]
    assert not elsewhere, "only the first host was given the release"
    kept(load)
    if name == "errors":
        # At most what the first host answered until it was stopped: it is stopped at five errors.
        assert 0 < len(failed) <= 40 and {line["status"] for line in failed} == {500}
    else:
        assert failed == [], load.verdict.failed


@pytest.mark.long
@pytest.mark.parametrize("service", ["redis", "postgres"])
def test_a_switchover_costs_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, service: str, repeat: int
) -> None:
    before = healthy.status()[1][service]["leader"]
    with Load(healthy, f"switchover-{service}-{repeat}", tmp_path) as load:
        said = healthy.playbook(f"ansible/recover/{service}-switchover.yml", "-e", "confirm=local")
    assert "recovered and proven" in said.output
    assert healthy.status()[1][service]["leader"] != before
    clean(load, record_property)


@pytest.mark.long
@pytest.mark.parametrize(
    ("playbook", "options"),
    [
        pytest.param("ansible/restart.yml", [], id="restart"),
        pytest.param("ansible/update.yml", ["-e", "reboot=always"], id="reboot"),
    ],
)
def test_walking_through_the_fleet_costs_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, playbook: str, options: list[str], repeat: int
) -> None:
    before = healthy.unit_starts()
    with Load(healthy, f"walk-{Path(playbook).stem}-{repeat}", tmp_path) as load:
        healthy.playbook(playbook, "-e", "edge=false", *options, timeout_s=1800)
    after = healthy.unit_starts()
    hosts = [host for host in healthy.groups["all"] if host not in healthy.groups["edge"]]
    kept = {"postgres": "patroni.service", "api": "pgbouncer.service", "ops": "prometheus.service"}
    for host in hosts:
        same = {unit for unit in kept.values() if unit in before[host] and before[host][unit] == after[host].get(unit)}
        assert not same, f"{host}: {same} was not restarted"
    clean(load, record_property)


@pytest.fixture
def unwidened(healthy: Fleet) -> Iterator[Fleet]:
    """The fleet; afterwards its schema is what its release knows. What only drills have, nobody reads."""
    yield healthy
    for statement in UNDO:
        sql(healthy, statement)


@pytest.mark.long
def test_a_migration_costs_nobody_a_request(
    unwidened: Fleet, tmp_path: Path, record_property: Record, repeat: int
) -> None:
    """A column and an index on the table that everybody works with; what serves goes on serving on the wider schema."""
    before = serving(unwidened)
    version = publish(unwidened, "widens")
    arguments = ["-e", "what=apply", "-e", f"release={version}"]
    with Load(unwidened, f"migrate-{repeat}", tmp_path) as load:
        unwidened.playbook(MIGRATE, *arguments)
        load.mark("migrated")
        # The schema is now ahead of what serves, which must not matter to a second run either.
        unwidened.playbook(MIGRATE, *arguments)
    applied = sql(unwidened, f"SELECT name FROM schema_migrations WHERE version > {LEVEL} ORDER BY version")
    assert applied.splitlines() == [f"{LEVEL + 1:04d}_drill", f"{LEVEL + 2:04d}_index_drill"]
    assert sql(unwidened, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'artifacts_drill'::regclass") == "t"
    assert serving(unwidened) == before
    clean(load, record_property)


def certificates(fleet: Fleet) -> dict[str, str]:
    """The certificate of each host, and the one that the edge shows to clients."""
    held = {host: fleet.ssh(host, "cat /etc/arches/tls/host.crt").stdout for host in fleet.groups["all"]}
    return {**held, "shown": ssl.get_server_certificate((fleet.address("edge1"), 443), ca_certs=str(fleet.ca))}


@pytest.mark.long
def test_new_certificates_cost_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, repeat: int
) -> None:
    """All of them by one run of site.yml, which restarts one after the other what reads them only at its start."""
    before = certificates(healthy)
    with Load(healthy, f"certificates-{repeat}", tmp_path) as load:
        # Longer than they are made for: each of them is due.
        healthy.playbook("site.yml", *GENTLY, "-e", "certificates_renew_days=366", timeout_s=1800)
    after = certificates(healthy)
    assert not {name for name in before if before[name] == after[name]}, "these certificates are still the old ones"
    clean(load, record_property)


@pytest.mark.long
def test_more_hosts_and_fewer_cost_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, repeat: int
) -> None:
    with Load(healthy, f"scale-{repeat}", tmp_path) as load:
        for count in (5, 3):
            said = healthy.playbook("ansible/scale.yml", *GENTLY, "-e", f"api={count}", timeout_s=1800)
            assert f"{count} API hosts serve" in " ".join(said.output.split())
            load.mark(f"{count} hosts")
    clean(load, record_property)


# Instances are frozen until requests wait in them and before them; then they die, and their socket closes.
KILLED = (
    "systemctl kill --signal=STOP 'api@*'; sleep 0.5; systemctl kill --signal=KILL 'api@*'; "
    "systemctl stop api.target api.socket; systemctl start api.target"
)


@pytest.mark.long
def test_without_any_of_this_requests_are_lost(healthy: Fleet, tmp_path: Path) -> None:
    """The control: were the client blind, all of the above would prove nothing."""
    with Load(healthy, "control-killed", tmp_path) as load:
        for _ in range(4):
            for host in healthy.groups["api"]:
                load.mark(host)
                healthy.ssh(host, KILLED)
                wait_for(f"{host} serves again", healthy.healthy, timeout_s=60, interval_s=1)
    assert load.verdict.failures > 0, f"the client saw nothing of twelve kills: {load.verdict}"
    # What was acknowledged before is there all the same.
    kept(load)
