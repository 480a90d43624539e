"""A release takes the place of another on one host, under a stream of requests, and goes back when it is not better."""

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from testinfra.host import Host

from lib.api_host import INSTANCES, pids, property_of, stream
from lib.waiting import wait_for

ROOT = "/opt/arches"
STATE = "/var/lib/arches/rollout.json"
PATIENCE = "/run/systemd/system/arches-rollout-back.timer.d/test.conf"


def rollout(host: Host, *arguments: str) -> dict[str, Any]:
    """What `arches-rollout` answers."""
    answer: dict[str, Any] = json.loads(host.check_output("arches-rollout " + shlex.join(arguments)))
    return answer


def refused(host: Host, *arguments: str) -> str:
    """The one sentence with which `arches-rollout` ends."""
    done = host.run("arches-rollout " + shlex.join(arguments))
    assert done.rc == 1, done.stdout
    [line] = done.stderr.splitlines()
    return str(line)


def serving(host: Host) -> set[str]:
    """The versions that the instances run."""
    return set(rollout(host, "status")["serving"])


def leaves(host: Host) -> None:
    """Wait until the instance that started beside the others has gone: it answers while it leaves."""
    wait_for("it leaves", lambda: property_of(host, "api@surge", "ActiveState") == "inactive", timeout_s=30)


@pytest.fixture(scope="module")
def first(host: Host) -> str:
    """The version that serves."""
    return str(rollout(host, "status")["current"])


@pytest.fixture
def make(host: Host, first: str) -> Iterator[Callable[..., str]]:
    """Makes a release of the one that serves: another version, and a change to one of its files."""
    made = []

    def release(version: str, file: str = "", change: tuple[str, str] = ("", "")) -> str:
        folder = f"{ROOT}/releases/{version}"
        host.run_expect([0], f"rm -rf {folder} && cp -al {ROOT}/releases/{first} {folder}")
        edits = {"release.env": (first, version), **({file: change} if file else {})}
        for name, (old, new) in edits.items():
            path = f"{folder}/{name}"
            text = host.file(path).content_string
            assert old in text, f"{name} no longer contains {old!r}"
            host.run_expect([0], f"rm {path} && rm -f {folder}/*/*/*/*/__pycache__/* {folder}/*/*/*/*/*/__pycache__/*")
            host.run_expect([0], f"printf %s {shlex.quote(text.replace(old, new, 1))} > {path}")
        known = json.loads(host.file(f"{ROOT}/records/{first}.json").content_string) | {"version": version}
        host.run_expect([0], f"printf %s {shlex.quote(json.dumps(known))} > {ROOT}/records/{version}.json")
        made.append(version)
        return version

    yield release
    host.run(f"rm -f {PATIENCE}; systemctl daemon-reload; arches-rollout back")
    if rollout(host, "status")["current"] != first:
        rollout(host, "stay", first)
    for version in made:
        host.run_expect([0], f"rm -rf {ROOT}/releases/{version} {ROOT}/records/{version}.json")


PACKAGE = "lib/python3.13/site-packages/arches_api"
START = "from .app import create_app\n"


def patience(host: Host, seconds: int) -> None:
    """Goes back after so many seconds without a word; taken back by `make`."""
    host.run_expect([0], f"mkdir -p {PATIENCE.rpartition('/')[0]}")
    host.run_expect([0], f"printf '[Timer]\\nOnActiveSec=\\nOnActiveSec={seconds}\\n' > {PATIENCE}")
    host.run_expect([0], "systemctl daemon-reload")


def test_a_release_takes_over_without_losing_a_request_and_stays(
    host: Host, api: httpx.Client, make: Callable[..., str], first: str
) -> None:
    version = make("v1.0.1")
    before = pids(host)
    with stream(api, workers=2) as outcomes:
        rollout(host, "mark")
        assert rollout(host, "switch", version) == {"changed": True, "from": first, "to": version}
        told = rollout(host, "soak", "3")
        assert rollout(host, "switch", version)["changed"], "repeated, it looks again whether all is done"
    assert set(outcomes) == {"200", "422"}, outcomes
    assert told["now"]["answers"] > 0 and told["now"]["errors"] == 0
    assert serving(host) == {version} and not set(before) & set(pids(host))
    assert api.get("/health/live").json()["release"] == version
    assert json.loads(host.file("/etc/arches/release").content_string)["version"] == version
    assert rollout(host, "status")["rollout"] == {"from": first, "to": version}
    assert rollout(host, "confirm") == {"changed": True, "now": version}
    leaves(host)
    assert rollout(host, "status")["rollout"] is None
    assert property_of(host, "arches-rollout-back.timer", "ActiveState") == "inactive"
    assert not rollout(host, "back")["changed"], "what was confirmed does not go back"
    assert not rollout(host, "switch", version)["changed"]


def test_what_has_proven_itself_is_asked_for_less_when_it_comes_back(
    host: Host, make: Callable[..., str], first: str
) -> None:
    version = make("v1.0.5")

    def asked(to: str) -> int:
        """How many requests a version answered before it took over, for good."""
        assert rollout(host, "stay", to)["to"] == to == rollout(host, "status")["current"]
        assert rollout(host, "status")["rollout"] is None
        assert property_of(host, "arches-rollout-back.timer", "ActiveState") == "inactive"
        lines = host.check_output("journalctl --unit=api@surge --output=cat --no-pager").splitlines()
        return [json.loads(line)["requests"] for line in lines if '"event":"proven"' in line][-1]

    assert asked(version) == 200
    assert asked(first) == asked(version) == 20
    assert "v1.0.1" not in host.file("/var/lib/arches/proven.json").content_string, "what is not kept is forgotten"


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            f"{PACKAGE}/run.py",
            (START, "raise SystemExit('it cannot even be imported')\n"),
            "it cannot even be imported",
        ),
        (
            f"{PACKAGE}/models/artifacts.py",
            ("async def get(", "async def lost("),
            "GET /v1/artifacts/{artifact} answered 500",
        ),
        (
            f"{PACKAGE}/blueprints/artifacts.py",
            ('@blueprint.get("/search")', '@blueprint.get("/lookup")'),
            "GET /v1/artifacts/search?q=release&limit=3 answered 404",
        ),
        (
            f"{PACKAGE}/lib/readiness.py",
            ("if state.requires_code > self._level:", "if state:"),
            "the database needs a release with migration",
        ),
    ],
)
def test_a_release_that_cannot_work_never_accepts_a_connection(
    host: Host, api: httpx.Client, make: Callable[..., str], first: str, file: str, change: tuple[str, str], says: str
) -> None:
    version = make("v6.6.6", file, change)
    before = pids(host)
    with stream(api, workers=2) as outcomes:
        said = refused(host, "switch", version)
    assert says in said and said.endswith(f"{first} serves."), said
    assert set(outcomes) == {"200", "422"}, outcomes
    assert pids(host) == before and serving(host) == {first}
    assert json.loads(host.file("/etc/arches/release").content_string)["version"] == first
    assert not host.file(STATE).exists


def test_errors_end_the_soak_and_the_host_goes_back(
    host: Host, api: httpx.Client, make: Callable[..., str], first: str
) -> None:
    # Only requests that came through a proxy fail, so its own proof does not see it.
    version = make(
        "v6.6.7",
        f"{PACKAGE}/app.py",
        ("    async def note_route() -> None:\n", "    async def note_route() -> None:\n"
         "        if 'X-Forwarded-For' in request.headers and request.path.startswith('/v1'):\n"
         "            raise RuntimeError('broken')\n"),
    )  # fmt: skip
    rollout(host, "switch", version)
    leaves(host)
    for _ in range(10):
        assert api.get("/v1/me", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 500
    assert "10 of its 10 answers were errors (100.0 %)" in refused(host, "soak", "20")
    assert rollout(host, "back") == {"changed": True, "now": first}
    assert serving(host) == {first} and api.get("/v1/me", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401


def test_an_instance_that_ends_by_itself_ends_the_soak(host: Host, make: Callable[..., str]) -> None:
    version = make("v6.6.8")
    rollout(host, "switch", version)
    host.run_expect([0], "systemd-run --on-active=2 systemctl kill --signal=KILL api@2")
    assert "an instance ended by itself" in refused(host, "soak", "30")


def test_a_host_that_is_forgotten_goes_back_by_itself(
    host: Host, api: httpx.Client, make: Callable[..., str], first: str
) -> None:
    version = make("v1.0.2")
    with stream(api, workers=2) as outcomes:
        rollout(host, "switch", version)
        assert serving(host) == {version}
        # Only now: on a busy computer the switch alone takes longer than this.
        patience(host, 15)
        rollout(host, "keep")
        wait_for("it goes back", lambda: serving(host) == {first}, timeout_s=60)
        wait_for("it is done", lambda: not host.file(STATE).exists, timeout_s=60)
    assert set(outcomes) == {"200", "422"}, outcomes
    assert json.loads(host.file("/etc/arches/release").content_string)["version"] == first


def test_a_switch_that_was_killed_half_way_is_made_up_for(host: Host, make: Callable[..., str], first: str) -> None:
    version = make("v1.0.3")
    host.run_expect([0], f"systemd-run --unit=half arches-rollout switch {version}")
    wait_for("it is half done", lambda: serving(host) == {first, version}, timeout_s=60, interval_s=0.1)
    host.run_expect([0], "systemctl kill --signal=KILL half; systemctl reset-failed half")
    assert "run arches-rollout back first" in refused(host, "switch", first)
    assert rollout(host, "switch", version)["changed"] and serving(host) == {version}
    assert rollout(host, "back") == {"changed": True, "now": first}
    assert serving(host) == {first} and property_of(host, "api@surge", "ActiveState") == "inactive"


def test_a_machine_that_starts_again_in_the_middle_begins_with_the_release_before(
    host: Host, make: Callable[..., str], first: str
) -> None:
    rollout(host, "switch", make("v1.0.4"))
    # What a boot does, in its order.
    assert property_of(host, "arches-rollout-back.service", "UnitFileState") == "enabled"
    host.run_expect([0], "systemctl stop api.target && systemctl start arches-rollout-back.service api.target")
    assert {property_of(host, unit, "SubState") for unit in INSTANCES} == {"running"}
    assert serving(host) == {first} and not host.file(STATE).exists


def test_a_version_that_is_not_there_is_refused_with_those_that_are(host: Host, first: str) -> None:
    assert f"v9.9.9 is not unpacked on this host; there are {first}" in refused(host, "switch", "v9.9.9")
