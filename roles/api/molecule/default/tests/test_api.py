"""The API on its one socket, in front of a real Postgres (through PgBouncer and HAProxy) and a real Redis."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from testinfra.host import Host

from lib.api_host import answered, pids, property_of, stream
from lib.waiting import wait_for

PROJECT = Path(__file__).parents[5]
CURRENT = "/opt/arches/current"
RELEASES = PROJECT / "inventories/local/.state/releases"


def test_a_user_registers_and_stores_a_text(api: httpx.Client) -> None:
    account = {"email": f"{os.urandom(6).hex()}@example.org", "password": "correct horse battery", "name": "Ada"}
    assert api.post("/v1/auth/register", json=account).status_code == 201
    answer = api.post("/v1/auth/login", json={key: account[key] for key in ("email", "password")})
    user = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    created = api.post("/v1/artifacts", json={"name": "note", "text": "kept"}, headers=user)
    assert created.status_code == 201, created.text
    assert api.get(f"/v1/artifacts/{created.json()['id']}", headers=user).json()["text"] == "kept"


def test_it_is_ready_and_says_who_it_is(host: Host, api: httpx.Client) -> None:
    answer = api.get("/health/ready")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-served-by"] == host.check_output("hostname")


def test_both_instances_answer_on_the_one_socket(host: Host, api: httpx.Client) -> None:
    assert len(set(pids(host))) == 2
    before = [answered(host, port) for port in (9090, 9091)]
    with stream(api) as outcomes:
        wait_for(
            "both have answered",
            lambda: all(answered(host, p) > b for p, b in zip((9090, 9091), before, strict=True)),
            60,
        )
    assert set(outcomes) == {"200", "422"}


def test_nothing_else_listens(host: Host, address: str) -> None:
    lines = host.check_output("ss -Hltnp").splitlines()
    sockets = {line.split()[3] for line in lines if '"python3"' in line and "api" not in line.split()[3]}
    assert sockets == {f"{address}:8080", "127.0.0.1:9090", "127.0.0.1:9091"}
    backlog = next(line.split()[2] for line in lines if f"{address}:8080" in line)
    assert int(backlog) >= 1024


def test_a_killed_instance_costs_no_new_connection(host: Host, api: httpx.Client) -> None:
    before = pids(host)
    # While the instance is idle: what it had accepted would be lost with it, nothing else may be.
    host.run_expect([0], "systemctl kill --signal=KILL api@1")
    assert {api.get("/health/live").status_code for _ in range(50)} == {200}
    wait_for("the instance is back", lambda: property_of(host, "api@1", "MainPID") not in ("0", before[0]), 30)
    assert property_of(host, "api@2", "MainPID") == before[1]


def test_connections_wait_while_no_instance_runs(host: Host, api: httpx.Client) -> None:
    host.run_expect([0], "systemctl kill --signal=KILL api@1 api@2")
    assert api.get("/health/live").status_code == 200


def test_a_restart_under_a_stream_of_requests_loses_none(host: Host, api: httpx.Client) -> None:
    before = pids(host)
    with stream(api) as outcomes:
        host.run_expect([0], "systemctl restart api@1 && systemctl restart api@2")
        seen = outcomes.total()
        wait_for("the new instances answer", lambda: outcomes.total() > seen + 20, timeout_s=30)
    assert set(outcomes) == {"200", "422"}, outcomes
    assert not set(before) & set(pids(host))


def test_a_stopped_instance_is_started_again(host: Host, api: httpx.Client) -> None:
    host.run_expect([0], "systemctl stop api@2")
    wait_for("the target brings it back", lambda: property_of(host, "api@2", "SubState") == "running", 30)


def test_a_host_can_leave_the_rotation_and_return(host: Host, api: httpx.Client) -> None:
    host.run_expect([0], "systemctl stop api.target && systemctl stop api.socket")
    with pytest.raises(httpx.ConnectError):
        api.get("/health/live")
    host.run_expect([0], "systemctl start api.target")
    assert api.get("/health/live").status_code == 200


def test_a_host_leaves_the_rotation_by_refusing_whoever_comes(host: Host, api: httpx.Client) -> None:
    """The edge then takes the next host; nothing that has come is broken off."""
    with stream(api) as outcomes:
        play("roles/api/molecule/default/rotation.yml", "-e", "step=leave")
    assert {outcome for outcome in outcomes if not outcome.startswith("ConnectError")} == {"200", "422"}, outcomes
    play("roles/api/molecule/default/rotation.yml", "-e", "step=join")
    assert api.get("/health/live").status_code == 200
    assert host.check_output("nft list tables").find("arches_away") == -1


def converge(*options: str, succeeds: bool = True) -> str:
    """Run the scenario's playbook again; returns its output."""
    return play("roles/api/molecule/default/converge.yml", *options, succeeds=succeeds)


def play(name: str, *options: str, succeeds: bool = True) -> str:
    """Run a playbook on the scenario's machine; returns its output."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    playbook = PROJECT / name
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, playbook, *options],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == succeeds, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def refused(*options: str) -> str:
    """Converge in vain; returns what it said."""
    return converge(*options, succeeds=False)


CHANGED = json.dumps(
    {"api_settings": {"EMBEDDINGS": "hash", "RATE_LIMIT_ADDRESS": "1000000/1m", "LOG_LEVEL": "warning"}}
)


def test_a_changed_setting_rolls_without_losing_a_request(host: Host, api: httpx.Client) -> None:
    before = pids(host)
    with stream(api, workers=2) as outcomes:
        converge("-e", CHANGED)
    assert set(outcomes) == {"200", "422"}, outcomes
    assert not set(before) & set(pids(host))
    assert not host.file("/var/lib/arches/pending/api").exists
    assert "LOG_LEVEL=warning" in host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pids(host)[0])


def test_a_restart_that_an_interrupted_run_left_is_made_up_for(host: Host, api: httpx.Client) -> None:
    before = pids(host)
    host.run_expect([0], """echo '["restart"]' > /var/lib/arches/pending/api""")
    converge("-e", CHANGED)
    assert not set(before) & set(pids(host))
    assert not host.file("/var/lib/arches/pending/api").exists


def test_one_instance_less_leaves_one(host: Host, api: httpx.Client) -> None:
    converge("-e", json.dumps({"api_instances": 1}))
    assert property_of(host, "api@1", "ActiveState") == "active"
    assert property_of(host, "api@2", "ActiveState") == "inactive"
    converge()
    assert property_of(host, "api@2", "ActiveState") == "active"


def test_the_release_is_what_was_built(host: Host) -> None:
    release = host.file(CURRENT).linked_to
    manifest = json.loads(host.file(f"{release}/manifest.json").content_string)
    assert release.endswith(f"/releases/{manifest['version']}")
    names = host.check_output("cd %s && find . -type f ! -name '*.pyc' -printf '%%P\\n'", release).splitlines()
    assert set(names) == {*manifest["files"], "manifest.json"}
    summed = host.check_output(
        "cd %s && find . -type f ! -name manifest.json ! -name '*.pyc' -printf '%%P\\0' | xargs -0 sha256sum", release
    )
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in summed.splitlines())}
    assert sums == manifest["files"]
    said = json.loads(host.file("/etc/arches/release").content_string)
    assert (said["version"], said["commit"]) == (manifest["version"], manifest["commit"])


def test_the_release_is_compiled(host: Host) -> None:
    """The API's user could not keep what it compiles, and would do so at every start."""
    run = "./bin/python3 -I -v -c 'import arches_api.app, boto3, quart' 2>&1"
    said = host.check_output(f"cd {CURRENT} && runuser -u arches -- {run}")
    site = f"{host.file(CURRENT).linked_to}/lib/python3.13/site-packages"
    assert f"code object from '{site}" in said
    assert not [
        line for line in said.splitlines() if line.startswith(f"# code object from {site}") and ".pyc" not in line
    ]


def backends(host: Host) -> set[str]:
    """The database's processes that work for the API."""
    asked = "SELECT pid FROM pg_stat_activity WHERE usename = 'app'"
    return set(host.check_output("runuser -u postgres -- psql -XAtc %s", asked).split())


def test_the_schema_is_asked_and_brought_up_to_date(host: Host, api: httpx.Client) -> None:
    newest = max(path.stem for path in (PROJECT / "app/migrations").glob("*.sql"))
    served = pids(host)
    said = play("ansible/migrate.yml")
    assert f"level: {int(newest[:4])}" in said and "pending: []" in said and f"- {newest}" in said
    assert api.get("/health/ready").status_code == 200
    before = backends(host)
    assert before
    assert "applied: []" in play("ansible/migrate.yml", "-e", "what=apply")
    wait_for("no pool keeps an old connection", lambda: not before & backends(host), timeout_s=60)
    assert api.get("/health/ready").status_code == 200
    assert pids(host) == served
    assert "say -e what=status, plan or apply" in " ".join(
        play("ansible/migrate.yml", "-e", "what=drop", succeeds=False).split()
    )


def altered(archive: Path) -> None:
    """One byte in its middle becomes another."""
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def unsigned(archive: Path) -> None:
    """Its signature stays behind."""
    archive.with_name(f"{archive.name}.minisig").unlink()


def untouched(archive: Path) -> None:
    """It is as good as before."""


@pytest.mark.parametrize(
    ("change", "record", "says"),
    [
        (altered, {}, "is not signed by the fleet's key"),
        (unsigned, {}, "the archive is not signed"),
        (untouched, {}, "version is dev\\+[0-9a-f]+, and this host needs dev\\+other"),
        (untouched, {"space": 10**15}, "MiB left, and the release needs"),
    ],
)
def test_a_bad_release_changes_nothing(
    host: Host, change: Callable[[Path], None], record: dict[str, int], says: str, tmp_path: Path
) -> None:
    known = json.loads((RELEASES / "api.json").read_text())
    for suffix in ("", ".minisig"):
        shutil.copy(RELEASES / f"{known['archive']}{suffix}", tmp_path)
    archive = tmp_path / known["archive"]
    change(archive)
    known |= {"version": "dev+other", "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(), **record}
    before = (host.check_output("ls -A /opt/arches/releases"), host.file(CURRENT).linked_to, pids(host))
    said = refused("-e", json.dumps({"api_release": known, "api_archives": str(tmp_path)}))
    assert re.search(says, " ".join(said.split())), said
    assert (host.check_output("ls -A /opt/arches/releases"), host.file(CURRENT).linked_to, pids(host)) == before


def test_the_release_needs_no_network(host: Host) -> None:
    """No registry, no route, not even a loopback: everything is in the release."""
    printed = host.check_output(f"cd {CURRENT} && unshare --net ./bin/python3 -I -m arches_api openapi")
    assert json.loads(printed)["openapi"].startswith("3.")


def test_an_instance_stays_in_its_release(host: Host) -> None:
    release = host.file(CURRENT).linked_to
    assert host.check_output("readlink /proc/%s/cwd", pids(host)[0]) == release
    prefix = host.check_output(f"cd {CURRENT} && ./bin/python3 -I -c 'import arches_api, sys; print(sys.prefix)'")
    assert prefix == release


def test_secrets_are_for_the_process_alone(host: Host) -> None:
    for name in ("api.env", "api-migrate.env"):
        assert host.run(f"runuser -u arches -- cat /etc/arches/{name}").rc != 0
    # The running API may not change the schema.
    assert "migrator" not in host.check_output("cat /proc/%s/environ", pids(host)[0])


def test_the_units_have_few_rights(host: Host) -> None:
    # The scale goes from 0 (nothing can go wrong) to 10; --threshold counts tenths.
    host.run_expect([0], "systemd-analyze security --no-pager --threshold=20 api@1.service")
    assert property_of(host, "api@1", "User") == "arches"
    assert property_of(host, "api@1", "TimeoutStopUSec") == "35s"
    assert property_of(host, "api@1", "Slice") == "api.slice"
    assert property_of(host, "api.slice", "MemoryMax") == str(384 * 1024**2)
    status = dict(
        line.split(":\t", 1) for line in host.file(f"/proc/{pids(host)[0]}/status").content_string.splitlines()
    )
    assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    write = "nsenter --target %s --mount -- runuser -u arches -- touch /opt/arches/x /etc/x /var/x /home/x"
    assert host.run(write, pids(host)[0]).rc != 0


def test_it_starts_with_the_machine(host: Host) -> None:
    assert host.check_output("systemctl is-enabled api.target") == "enabled"


@pytest.fixture
def broken_settings(host: Host) -> Iterator[Callable[[], None]]:
    """Replaces a setting by a wrong one; takes it back at the end."""
    yield lambda: host.run_expect([0], "sed -i.kept 's/^ENV=.*/ENV=\"moon\"/' /etc/arches/api.env") and None
    host.run_expect([0], "mv /etc/arches/api.env.kept /etc/arches/api.env && systemctl restart api@1 api@2")


def test_an_api_that_cannot_start_keeps_its_socket(
    host: Host, api: httpx.Client, broken_settings: Callable[[], None]
) -> None:
    """A socket that gave up waking it would stay closed when the settings are right again."""
    broken_settings()
    host.run_expect([0], "systemctl kill --signal=KILL api@1 api@2")
    wait_for("it fails again and again", lambda: int(property_of(host, "api@1", "NRestarts")) >= 4, timeout_s=60)
    for _ in range(30):
        with pytest.raises(httpx.TimeoutException):
            api.get("/health/live", timeout=0.2)
    assert property_of(host, "api.socket", "ActiveState") == "active"
    assert "ENV is 'moon'" in host.check_output("journalctl --unit=api@1 --lines=50 --output=cat")
