"""What is lost or damaged for real, and comes back: room, backups, certificates, a release, pages of tables, all of it.

Marked `long`, for `make test-full`: what takes minutes, or is much like another.
"""

import datetime
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from drills.recovering import Writes, keep, recover, said
from lib.client import edge_client, login, stored
from lib.fleet import Fleet, PlaybookFailed
from lib.history import lost
from lib.leaders import leader, leads
from lib.plugins import load_plugin
from lib.postgres import sql
from lib.variants import publish
from lib.waiting import wait_for

# What a minute's worth of WAL and its way into the store may take.
RPO_S = 90
BLOCK = 8192


@pytest.mark.long
def test_a_full_disk_gets_room(writes: Writes) -> None:
    fleet = writes.fleet
    folder = "/var/log/drill"
    fill = f"cd {folder} && dd if=/dev/urandom of=%s bs=1M count=64 status=none || test -s %s"
    fleet.ssh("api2", f"mkdir -p {folder} && mount -t tmpfs -o size=24m drill {folder}")
    try:
        fleet.ssh("api2", fill.replace("%s", "app.log.1"))
        assert fleet.ssh("api2", f"echo more > {folder}/app.log", check=False).returncode != 0, "the disk is full"
        with writes.through():
            assert "rotated logs" in said(fleet, "disk-full")
            writes.recover("disk-full")
        fleet.ssh("api2", f"echo more > {folder}/app.log && test ! -e {folder}/app.log.1")
        # What may not go stays, and on-call hears what it is.
        fleet.ssh("api2", fill.replace("%s", "app.log"))
        with pytest.raises(PlaybookFailed, match="Nothing more may go by itself"):
            recover(fleet, "disk-full")
        fleet.ssh("api2", f"test -s {folder}/app.log")
    finally:
        fleet.ssh("api2", f"umount {folder} && rmdir {folder}")
    writes.keep("disk-full")


# Whoever has a data host's keys can do no more than this.
DELETE = """
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.SourceFileLoader("program", "/usr/local/sbin/arches-backup")
program = importlib.util.module_from_spec(importlib.util.spec_from_loader("program", loader))
sys.modules["program"] = program
loader.exec_module(program)
host = program.Host(json.loads(program.CONFIG.read_text()))
for key in sorted({one.key for one in host.versions() if one.key.startswith("pgbackrest/")}):
    host.store("DELETE", key)
"""


def backups(fleet: Fleet, host: str) -> list[dict[str, Any]]:
    """What pgBackRest's list in the store names, the oldest first, asked on a data host."""
    listed = fleet.ssh(host, "runuser -u postgres -- pgbackrest --stanza=arches --output=json info").stdout
    found: list[dict[str, Any]] = json.loads(listed)[0]["backup"]
    return found


@pytest.mark.long
def test_deleted_backups_come_back_and_are_proven(writes: Writes) -> None:
    fleet = writes.fleet
    first = leader(fleet)
    before = [one["label"] for one in backups(fleet, first)]
    assert before, "the fleet has made a backup"
    fleet.ssh(first, "python3 -", stdin=DELETE, timeout_s=300)
    assert backups(fleet, first) == []
    with writes.through():
        assert before[0] in said(fleet, "backups-deleted")
        output = writes.recover("backups-deleted")
    writes.keep("backups-deleted")
    after = [one["label"] for one in backups(fleet, first)]
    assert set(before) < set(after), output[-2000:]
    assert "is gone" in said(fleet, "backups-deleted", at=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}")


# As if the days had passed for which the store keeps what was deleted.
FOR_GOOD = """
sed -E '/"buckets"/,/}/ s/: [0-9]+/: 0/' /etc/arches-versitygw/prune.json > /run/drill-prune.json
systemd-run --wait --quiet -p EnvironmentFile=/etc/arches-versitygw/environment arches-s3-prune /run/drill-prune.json
rm /run/drill-prune.json
"""


@pytest.mark.long
def test_where_nothing_deleted_comes_back_backups_begin_anew(writes: Writes) -> None:
    fleet = writes.fleet
    first = leader(fleet)
    before = {one["label"] for one in backups(fleet, first)}
    assert "without -e new_chain=true" in said(fleet, "backups-deleted", new_chain="true"), "they are all there"
    fleet.ssh(first, "python3 -", stdin=DELETE, timeout_s=300)
    assert "without -e new_chain=true" in said(fleet, "backups-deleted", new_chain="true"), "they can come back"
    fleet.ssh("ops1", "bash -eu -", stdin=FOR_GOOD, timeout_s=300)
    assert "-e new_chain=true" in said(fleet, "backups-deleted")
    with writes.through():
        output = writes.recover("backups-deleted", new_chain="true")
    writes.keep("backups-gone")
    assert "every moment before the full backup that is made now" in output
    [made] = backups(fleet, first)
    assert made["type"] == "full" and made["label"] not in before


@pytest.mark.long
def test_a_release_that_is_bad_after_all_goes(writes: Writes) -> None:
    fleet = writes.fleet
    [before] = {json.loads(fleet.ssh(host, "arches-rollout status").stdout)["current"] for host in fleet.groups["api"]}
    fleet.playbook("ansible/deploy.yml", "-e", f"release={publish(fleet, 'good')}")
    with writes.through():
        writes.recover("release-bad")
    writes.keep("release-bad")
    assert {json.loads(fleet.ssh(h, "arches-rollout status").stdout)["current"] for h in fleet.groups["api"]} == {
        before
    }
    assert writes.history.counts()["fail"] == writes.history.counts()["unknown"] == 0


def damage(fleet: Fleet, host: str, relation: str) -> None:
    """A page of a relation is overwritten on a standby's disk while its Postgres does not run."""
    path = sql(fleet, f"SELECT current_setting('data_directory') || '/' || pg_relation_filepath('{relation}')")
    fleet.ssh(host, "systemctl stop patroni", timeout_s=120)
    fleet.ssh(host, f"dd if=/dev/urandom of={path} bs={BLOCK} seek=1 count=1 conv=notrunc status=none")
    fleet.ssh(host, "systemctl start patroni")
    wait_for("it follows again", fleet.healthy, timeout_s=90, interval_s=1)


@pytest.mark.long
@pytest.mark.parametrize("led", [False, True])
def test_damaged_pages_are_found_and_gone(writes: Writes, led: bool) -> None:
    """A table on one host, an index on another; with `led` the host of the table leads when it is found."""
    fleet = writes.fleet
    sql(
        fleet,
        "DROP TABLE IF EXISTS drill_pages",
        "CREATE TABLE drill_pages AS SELECT id, repeat('x', 200) AS text FROM generate_series(1, 5000) id",
        "CREATE UNIQUE INDEX drill_index ON drill_pages (id)",
        # What is written later would bring the page whole, in the WAL.
        "VACUUM FREEZE drill_pages",
        "CHECKPOINT",
    )
    try:
        table, index = (host for host in fleet.groups["data"] if host != leads(fleet, "postgres"))
        damage(fleet, table, "drill_pages")
        damage(fleet, index, "drill_index")
        fleet.playbook(
            "ansible/recover/postgres-switchover.yml", "-e", f"candidate={table if led else index}",
            "-e", "confirm=local", "-e", "restart=true",
        )  # fmt: skip
        with writes.through():
            output = writes.recover("corruption")
        assert f"copied anew {table}" in output, output[-2000:]
        assert "built anew public.drill_index" in output, output[-2000:]
        writes.keep(f"corruption-{'leader' if led else 'standby'}")
        assert sql(fleet, "SELECT count(*) FROM drill_pages") == "5000"
        assert "are whole on data1, data2, data3" in said(fleet, "corruption")
    finally:
        sql(fleet, "DROP TABLE drill_pages")


def expire(fleet: Fleet, host: str) -> None:
    """A host's certificate ran out yesterday."""
    pki = load_plugin("module_utils", "pki")
    authority = pki.Authority((fleet.state / "ca.key").read_text(), fleet.ca.read_text())
    request = fleet.ssh(host, "openssl req -new -key /etc/arches/tls/host.key -subj /CN=x").stdout
    found = fleet.variables[host]
    names = [host, "postgres", "localhost", found["address"], "127.0.0.1"]
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=31)
    fleet.ssh(host, "cat > /etc/arches/tls/host.crt", stdin=pki.sign(request, host, names, authority, 30, then))


@pytest.mark.long
def test_expired_certificates_stop_the_fleet_and_it_comes_back(writes: Writes) -> None:
    fleet = writes.fleet
    with writes.through():
        for host in fleet.groups["all"]:
            expire(fleet, host)
        for host in fleet.groups["data"]:
            # Connections that were made before would go on for ever.
            fleet.ssh(host, "systemctl restart --no-block etcd patroni redis-server redis-sentinel")
        wait_for("nobody leads", lambda: leads(fleet, "postgres") is None, timeout_s=90, interval_s=1)
        assert "it expired" in said(fleet, "certificates-expired", without_lock="true")
        writes.recover("certificates-expired", without_lock="true")
    writes.keep("certificates-expired")


@pytest.mark.long
def test_a_new_ca_follows_the_old_one_without_an_outage(healthy: Fleet, tmp_path: Path, repeat: int) -> None:
    fleet = healthy
    old = fleet.ca.read_text()
    assert "the old CA is forgotten" not in recover(fleet, "certificates-expired", rotate_ca="true")
    # Clients trust what the inventory's file has: both, by now.
    writes = Writes(fleet, tmp_path, repeat)
    with writes.through():
        assert "the old CA is forgotten" in writes.recover("certificates-expired", rotate_ca="true")
        writes.recover("certificates-expired", rotate_ca="true")
    writes.keep("ca-rotated")
    assert old not in fleet.ca.read_text() and fleet.ca.read_text().count("BEGIN") == 1


def admits(fleet: Fleet, name: str, password: str) -> bool:
    """Whether somebody with this password is let in as the application."""
    if name == "redis":
        ask = f"REDISCLI_AUTH='{password}' redis-cli -e --tls --cacert /etc/arches/tls/ca.crt --user app ping"
        return fleet.ssh("data1", ask, check=False).stdout == "PONG\n"
    users = ("app", "app2")
    where = "'host=/run/postgresql port=6432 dbname=arches user=%s' -XAtc 'SELECT 1'"
    tries = [fleet.ssh("api1", f"PGPASSWORD='{password}' psql -w {where % user}", check=False) for user in users]
    return any(one.stdout == "1\n" for one in tries)


@pytest.mark.long
def test_a_leaked_signing_key_that_may_not_wait_costs_everybody_a_session(writes: Writes) -> None:
    with writes.through():
        writes.recover("secrets-leaked", **{"class": "jwt"}, at_once="true")
    with edge_client(writes.fleet) as client:
        assert client.get("/v1/artifacts", headers=writes.user).status_code == 401
    writes.keep("secrets-jwt")


@pytest.mark.long
@pytest.mark.parametrize("name", ["postgres", "redis", "s3", "tls"])
def test_a_leaked_secret_is_replaced_while_requests_go_on(writes: Writes, name: str) -> None:
    fleet = writes.fleet
    file = {"postgres": "postgres_app", "redis": "redis_app", "s3": "s3_backups"}.get(name)

    def secret() -> str:
        return (fleet.state / "secrets" / file).read_text().strip() if file else ""

    former = secret()
    if name in ("postgres", "redis"):
        assert admits(fleet, name, former)
    with writes.through():
        writes.recover("secrets-leaked", **{"class": name})
    writes.keep(f"secrets-{name}")
    assert writes.history.counts()["fail"] == writes.history.counts()["unknown"] == 0
    now = secret()
    if name in ("postgres", "redis"):
        assert admits(fleet, name, now) and not admits(fleet, name, former)
    if file:
        assert now != former
    if name == "s3":
        fleet.ssh(leader(fleet), "arches-backup differential", timeout_s=300)


@pytest.mark.long
def test_everything_is_gone_but_git_the_bundle_and_the_store(writes: Writes, tmp_path: Path) -> None:
    fleet = writes.fleet
    fleet.playbook("ansible/escrow.yml")
    bundle = max((fleet.state / "escrow").glob("local-*.age"))
    kept = {"bundle": tmp_path / "safe.age", "identity": tmp_path / "anna.key"}
    shutil.copy(bundle, kept["bundle"])
    shutil.copy(fleet.state / "escrow" / "first.key", kept["identity"])
    with writes.through():
        wait_for("a minute of writes", lambda: writes.history.counts()["ok"] > 400, timeout_s=180)
    gone = time.monotonic()
    fleet.machines("absent")
    shutil.move(fleet.state, tmp_path / "state")
    with pytest.raises(PlaybookFailed, match="has no secrets"):
        fleet.playbook("ansible/recover/fleet-rebuild.yml", "-e", "confirm=local")
    writes.recover("fleet-rebuild", **{name: str(path) for name, path in kept.items()})
    with edge_client(fleet) as client:
        writes.user = login(client, writes.account)
    missing = lost(writes.history, stored(fleet, writes.user, writes.history))
    oldest = min((e.at for e in writes.history.entries if e.event == "ok" and e.key in missing), default=gone)
    acknowledged = len(writes.history.acknowledged())
    took, rpo_s = round(writes.recovered_in_s), round(gone - oldest)
    keep("fleet-rebuild", writes.repeat, recovered_in_s=took, ok=acknowledged, lost=len(missing), rpo_s=rpo_s)
    assert acknowledged > len(missing) and gone - oldest < RPO_S
    with writes.through():
        pass
