"""Releases come and go while people outside work with the API (tests/drills/rollout): whom does it cost a request?"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from drills.rollout.judge import is_failure
from drills.rollout.load import Load
from lib.fleet import Fleet
from lib.variants import publish

DEPLOY, ROLLBACK = "ansible/deploy.yml", "ansible/rollback.yml"
REPEATS = range(int(os.environ.get("REPEATS", "1")))

Record = Callable[[str, object], None]


def serving(fleet: Fleet) -> set[str]:
    """The versions that the API hosts serve, as every one of their instances says."""
    said = [json.loads(fleet.ssh(host, "arches-rollout status").stdout) for host in fleet.groups["api"]]
    assert all(answer["rollout"] is None for answer in said), said
    return {version for answer in said for version in answer["serving"]}


def clean(load: Load, gap_s: float = 5) -> None:
    """Nobody was refused or kept waiting for long, and everything that was acknowledged is there once."""
    assert load.verdict.failures == 0, load.verdict.failed
    assert (load.lost, load.doubled) == ([], [])
    assert load.verdict.requests > 200 and load.verdict.longest_gap_s < gap_s


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_release_and_the_way_back_cost_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, repeat: int
) -> None:
    [before] = serving(healthy)
    version = publish(healthy, "good")
    with Load(healthy, "deploy-and-rollback", tmp_path) as load:
        healthy.playbook(DEPLOY, "-e", f"release={version}")
        load.mark("deployed")
        assert serving(healthy) == {version}
        said = healthy.playbook(ROLLBACK)
        load.mark("back")
    assert f"{before} serves on" in said.output and serving(healthy) == {before}
    clean(load)
    record_property("p99_ms", load.verdict.p99_ms)
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


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize(("name", "says"), BAD)
def test_a_bad_release_puts_itself_back(
    healthy: Fleet, tmp_path: Path, record_property: Record, name: str, says: str, repeat: int
) -> None:
    [before] = serving(healthy)
    version = publish(healthy, name)
    with Load(healthy, f"bad-{name}", tmp_path) as load:
        result = healthy.playbook(DEPLOY, "-e", f"release={version}", check=False)
    output = " ".join(result.output.split())
    assert f"{version} was not rolled out" in output and re.search(says, output), result.output[-4000:]
    assert serving(healthy) == {before}
    assert all(f"{host} serves {before}" in output for host in healthy.groups["api"])
    failed = [line for line in load.lines if is_failure(line)]
    record_property("failures", len(failed))
    assert {line["served_by"] for line in failed} <= {"api1"}, "only the first host was given the release"
    assert (load.lost, load.doubled) == ([], [])
    if name == "errors":
        # At most what the first host answered until it was stopped: it is stopped at five errors.
        assert 0 < len(failed) <= 40 and {line["status"] for line in failed} == {500}
    else:
        assert failed == [], load.verdict.failed


@pytest.mark.long
@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("service", ["redis", "postgres"])
def test_a_switchover_costs_nobody_a_request(
    healthy: Fleet, tmp_path: Path, record_property: Record, service: str, repeat: int
) -> None:
    before = healthy.status()[1][service]["leader"]
    with Load(healthy, f"switchover-{service}", tmp_path) as load:
        said = healthy.playbook(f"ansible/recover/{service}-switchover.yml", "-e", "confirm=local")
    assert "recovered and proven" in said.output
    assert healthy.status()[1][service]["leader"] != before
    # While Postgres has no leader, queries wait in the pools.
    clean(load, gap_s=10)
    record_property("worst_ms", load.verdict.worst_ms)


@pytest.mark.long
@pytest.mark.parametrize("repeat", REPEATS)
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
    with Load(healthy, f"walk-{Path(playbook).stem}", tmp_path) as load:
        healthy.playbook(playbook, "-e", "edge=false", *options, timeout_s=1800)
    after = healthy.unit_starts()
    hosts = [host for host in healthy.groups["all"] if host not in healthy.groups["edge"]]
    kept = {"postgres": "patroni.service", "api": "pgbouncer.service", "ops": "prometheus.service"}
    for host in hosts:
        same = {unit for unit in kept.values() if unit in before[host] and before[host][unit] == after[host].get(unit)}
        assert not same, f"{host}: {same} was not restarted"
    clean(load, gap_s=10)
    record_property("worst_ms", load.verdict.worst_ms)


@pytest.mark.long
def test_without_any_of_this_requests_are_lost(healthy: Fleet, tmp_path: Path) -> None:
    """The control: were the client blind, all of the above would prove nothing."""
    with Load(healthy, "control-killed", tmp_path) as load:
        for host in healthy.groups["api"]:
            healthy.ssh(host, "systemctl kill --signal=KILL 'api@*'; systemctl stop api.target api.socket")
            healthy.ssh(host, "systemctl start api.target")
    assert load.verdict.failures > 0, f"the client saw nothing of three killed hosts: {load.verdict}"
