"""One data host and its store: what is backed up comes back, and whatever the store does nothing is lost.

The tests follow one another. STORE_DOWN_S is how long the store stays away; the fleet's promise is three minutes.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

from lib.scenario import feed, machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://data1"]
STORE_DOWN_S = float(os.environ.get("STORE_DOWN_S", "20"))
SCENARIO = Path(__file__).parents[1]
SECRETS = ("not-a-secret-writer", "not-a-secret-passphrase", "replication-secret")
SCRATCH = "/var/lib/postgresql/scratch"
PGBACKREST = "sudo -u postgres pgbackrest --stanza=arches"
DATA = "/var/lib/postgresql/17/arches"


def sql(host: Host, statement: str, where: str = "") -> str:
    """What the database answers to its superuser."""
    return feed(host, f"psql -XAtq -v ON_ERROR_STOP=1 -U postgres -d arches {where}", statement).strip()


def info(host: Host) -> dict:
    """What pgBackRest says of the store."""
    return json.loads(host.check_output(f"{PGBACKREST} --output=json info"))[0]


def labels(host: Host) -> list[str]:
    """Names of the backups in the store."""
    return [backup["label"] for backup in info(host)["backup"]]


def s3(host: Host, method: str, path: str) -> tuple[int, str]:
    """Status and answer of the store to the account of backups."""
    curl = "curl -sS --config - --cacert /etc/arches/tls/ca.crt --aws-sigv4 aws:amz:local:s3 -w '\\n%{http_code}'"
    done = feed(host, f"{curl} --request {method} 'https://store:7070/{path}'", f'user = "writer:{SECRETS[0]}"')
    answer, _, status = done.rpartition("\n")
    return int(status), answer


def between(answer: str, tag: str) -> str:
    """The first value of a tag in the store's answer."""
    return answer.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]


@contextmanager
def store_is_silent() -> Iterator[None]:
    """Nothing that is sent to the store arrives, and nobody is told."""
    store = machine("store")
    feed(store, "nft -f -", "table inet away { chain a { type filter hook input priority 0; tcp dport 7070 drop; }; }")
    try:
        yield
    finally:
        store.check_output("nft delete table inet away")


def waiting_wal(host: Host) -> int:
    """WAL files that are not archived yet."""
    return int(host.check_output(f"find {DATA}/pg_wal/archive_status -name '*.ready' | wc -l"))


def archived(host: Host) -> None:
    """Everything written so far is in the store."""
    sql(host, "SELECT pg_switch_wal()")
    wait_for("all WAL is archived", lambda: waiting_wal(host) == 0, 90)


@contextmanager
def restored(host: Host) -> Iterator[str]:
    """The newest backup with all archived WAL, running beside production; what psql needs to reach it."""
    postgres = f"/usr/lib/postgresql/17/bin/pg_ctl -w -t 120 -D {SCRATCH} -l {SCRATCH}.log"
    settings = "-c port=5499 -c listen_addresses= -c unix_socket_directories=/tmp -c cluster_name=scratch"
    feed(host, f"rm -rf {SCRATCH} && install -d -o postgres -g postgres -m 0700 {SCRATCH}")
    host.check_output(f"{PGBACKREST} --pg1-path={SCRATCH} --archive-mode=off restore")
    try:
        host.check_output(f"sudo -u postgres {postgres} -o '{settings}' start")
        where = "-h /tmp -p 5499"
        wait_for("all WAL is replayed", lambda: sql(host, "SELECT pg_is_in_recovery()", where) == "f", 120)
        yield where
    finally:
        feed(host, f"test ! -e {SCRATCH}/postmaster.pid || sudo -u postgres {postgres} -m immediate stop")
        feed(host, f"rm -rf {SCRATCH} {SCRATCH}.log")


@contextmanager
def running(host: Host, verb: str) -> Iterator[None]:
    """A backup that is being made; afterwards it has to have succeeded."""
    host.check_output("systemctl start --no-block arches-backup@%s", verb)
    wait_for("the backup is being made", lambda: info(host)["status"]["lock"]["backup"]["held"], 60)
    yield
    unit = f"systemctl show -p ActiveState --value arches-backup@{verb}"
    wait_for("the backup ends", lambda: host.check_output(unit) in ("inactive", "failed"), 300)
    log = host.check_output("journalctl -u arches-backup@%s -n 20 --no-pager", verb)
    assert host.check_output(unit) == "inactive", log


@pytest.fixture(scope="module")
def data(host: Host) -> int:
    """Enough data for a backup of some seconds; number of rows."""
    noise = "SELECT string_agg(md5(id || ' ' || n), '') FROM generate_series(1, 16) n"
    sql(host, f"CREATE TABLE IF NOT EXISTS filling AS SELECT id, ({noise}) FROM generate_series(1, 200000) id")
    return int(sql(host, "SELECT count(*) FROM filling"))


def test_the_first_backups_are_made_by_nobody(host: Host) -> None:
    for timer in ("arches-backup@due.timer", "arches-canary.timer"):
        assert host.service(timer).is_running
    assert host.service("arches-backup.target").is_enabled
    # What the timer does every five minutes.
    host.check_output("systemctl start arches-backup@due")
    assert [label[-1] for label in labels(host)] == ["F"]
    assert "<Key>redis/data1/" in s3(host, "GET", "backups?list-type=2&prefix=redis%2F")[1]
    host.check_output("systemctl start arches-backup@due")
    assert len(labels(host)) == 1, "nothing was due any more"
    told = host.file("/var/lib/prometheus/node-exporter/backup.prom").content_string
    assert 'arches_backup_last_success_timestamp_seconds{type="full"}' in told
    assert 'arches_backup_size_bytes{type="redis"}' in told


def test_the_canary_writes_what_restores_are_judged_by(host: Host) -> None:
    host.check_output("systemctl start arches-canary")
    beats = int(sql(host, "SELECT count(*) FROM canary.beat"))
    sql(host, "CREATE TABLE counted (id int)")
    sql(host, "INSERT INTO counted SELECT generate_series(1, 42)")
    wait_for(
        "statistics tell of the rows",
        lambda: sql(host, "SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = 'counted'") == "42", 30,
    )  # fmt: skip
    host.check_output("systemctl start arches-canary")
    assert int(sql(host, "SELECT count(*) FROM canary.beat")) > beats
    newest = "FROM canary.beat ORDER BY at DESC LIMIT 1"
    assert (
        sql(host, f"SELECT rows->>'public.counted', host, clock_timestamp() - at < '1 minute' {newest}") == "42|data1|t"
    )
    near = "SELECT id FROM canary.landmark ORDER BY embedding <=> '[0.5,0.9,0]' LIMIT 2"
    assert sql(host, near).split() == ["4", "2"]
    assert "arches_canary_last_success" in host.file("/var/lib/prometheus/node-exporter/canary.prom").content_string
    sql(host, "DROP TABLE counted")


def test_a_restored_copy_has_what_was_written_after_the_backup(host: Host) -> None:
    sql(host, "DROP TABLE IF EXISTS later; CREATE TABLE later (word text)")
    sql(host, "INSERT INTO later VALUES ('after the backup')")
    archived(host)
    with restored(host) as copy:
        assert sql(host, "TABLE later", copy) == "after the backup"
        assert sql(host, "SHOW archive_mode", copy) == "off", "a copy must not write into production's archive"


def test_what_is_stored_is_encrypted(host: Host) -> None:
    found = machine("store").run("grep -rlaE 'after the backup|\\[backup:current\\]|REDIS00' /var/lib/versitygw/store")
    assert found.stdout == "" and found.rc == 1
    copies = s3(host, "GET", "backups?list-type=2&prefix=redis%2F")[1]
    assert s3(host, "GET", f"backups/{between(copies, 'Key')}")[1].startswith("Salted__"), "openssl's mark"


def outage_passes(began: float) -> None:
    """The store stays away for its time."""
    wait_for("the outage is over", lambda: time.monotonic() - began >= STORE_DOWN_S, STORE_DOWN_S + 10)


def test_archiving_goes_on_when_the_store_is_back(host: Host) -> None:
    failures = "SELECT failed_count FROM pg_stat_archiver"
    before, began = int(sql(host, failures)), time.monotonic()
    with store_is_silent():
        for number in range(3):
            sql(host, f"INSERT INTO later VALUES ('in the outage {number}'); SELECT pg_switch_wal()")
        # Monitoring reads this counter.
        wait_for("Postgres notices", lambda: int(sql(host, failures)) > before, 20)
        outage_passes(began)
        assert waiting_wal(host) >= 3
    wait_for("all WAL is archived", lambda: waiting_wal(host) == 0, 90)
    with restored(host) as copy:
        assert sql(host, "SELECT count(*) FROM later WHERE word LIKE 'in the outage%'", copy) == "3"


@pytest.mark.parametrize("how", ["silent", "killed"])
def test_a_backup_survives_an_outage_of_the_store(host: Host, data: int, how: str) -> None:
    before, began = labels(host), time.monotonic()
    with running(host, "full"):
        if how == "killed":
            machine("store").check_output("systemctl kill -s KILL arches-versitygw")
        else:
            with store_is_silent():
                outage_passes(began)
    assert len(labels(host)) >= len(before), "one more, and the oldest may have expired"
    assert labels(host)[-1] != before[-1]
    with restored(host) as copy:
        assert int(sql(host, "SELECT count(*) FROM filling", copy)) == data


def test_a_second_backup_at_once_is_refused_in_words(host: Host, data: int) -> None:
    with running(host, "full"):
        second = host.run("arches-backup differential")
        due = host.run("arches-backup due")
        processes = host.check_output("ps axww -o args")
    assert second.rc == 75 and "Another backup is being made: wait for its end" in second.stderr, second
    assert due.rc == 0, "the timer has nothing to add"
    assert "pgbackrest" in processes and not [secret for secret in SECRETS if secret in processes]


def test_old_backups_expire_and_stay_as_versions(host: Host) -> None:
    assert [label[-1] for label in labels(host)].count("F") == 2, "backup_keep_full"
    listed = s3(host, "GET", "backups?versions&prefix=pgbackrest%2Fbackup%2Farches%2F")[1]
    assert "<DeleteMarker>" in listed


def test_the_account_of_backups_cannot_destroy_a_version(host: Host) -> None:
    first = s3(host, "GET", "backups?versions&prefix=redis%2F")[1].partition("<Version>")[2]
    key, version = between(first, "Key"), between(first, "VersionId")
    assert key.startswith("redis/") and version
    assert s3(host, "DELETE", f"backups/{key}?versionId={version}")[0] == 403
    assert s3(host, "DELETE", f"backups/{key}")[0] == 204, "deleted by name it stays as a version"
    assert s3(host, "GET", f"backups/{key}?versionId={version}")[0] == 200


def test_what_somebody_deleted_comes_back(host: Host) -> None:
    before = labels(host)
    sql(host, "INSERT INTO later VALUES ('before the deletion')")
    archived(host)
    listed = s3(host, "GET", "backups?list-type=2&prefix=pgbackrest%2F")[1]
    keys = [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]
    assert len(keys) > 10
    for key in keys:
        assert s3(host, "DELETE", f"backups/{key}")[0] == 204
    assert labels(host) == []
    assert host.run("arches-backup differential").rc == 1
    deleted = json.loads(host.check_output("arches-backup deleted"))
    # The moment is found without being named. What expired just before comes back, too, and expires again.
    assert deleted["objects"] >= len(keys)
    assert {"WAL", "the lists of backups and WAL", *(f"backup {label}" for label in before)} <= set(deleted["back"])
    said = host.check_output(f"arches-backup bring-back --at {deleted['at']}")
    assert said.startswith(f"{deleted['objects']} objects")
    again = s3(host, "GET", "backups?list-type=2&prefix=pgbackrest%2F")[1]
    assert set(keys) <= {part.partition("</Key>")[0] for part in again.split("<Key>")[1:]}
    assert labels(host) == before
    # Whoever was interrupted repeats it.
    host.check_output(f"arches-backup bring-back --at {deleted['at']}")
    assert labels(host) == before
    with restored(host) as copy:
        assert sql(host, "SELECT count(*) FROM later WHERE word = 'before the deletion'", copy) == "1"
    host.check_output("arches-backup differential")


@pytest.mark.parametrize(
    ("setting", "value", "fix"),
    [
        ("repo1-s3-key-secret", "wrong", "compare vault_s3_backups_"),
        ("repo1-s3-bucket", "elsewhere", "object_store.bucket"),
        ("repo1-cipher-pass", "wrong", "put the former vault_backup_passphrase back"),
    ],
)
def test_what_the_store_refuses_is_said_with_the_fix(host: Host, setting: str, value: str, fix: str) -> None:
    file = "/etc/pgbackrest/pgbackrest.conf"
    feed(host, f"cp -a {file} {file}.good && sed -i 's|^{setting}=.*|{setting}={value}|' {file}")
    try:
        refused = host.run("arches-backup prepare")
    finally:
        feed(host, f"mv {file}.good {file}")
    assert refused.rc == 1 and fix in refused.stderr and len(refused.stderr.splitlines()) == 1, refused
    assert host.run("arches-backup prepare").stdout == ""


def test_a_schedule_that_systemd_does_not_know_stops_the_run(host: Host) -> None:
    with pytest.raises(AssertionError, match="The schedule 'every night' is none that systemd knows"):
        play(SCENARIO / "converge.yml", {"backup_full": "every night"}, "--limit", "data1")
    assert set(play(SCENARIO / "converge.yml", {}, "--limit", "data1").values()) == {1}


def test_a_copy_of_redis_starts_in_another_one(host: Host) -> None:
    client = "redis-cli --tls --cacert /etc/arches/tls/ca.crt --user admin --no-auth-warning"
    feed(host, f"REDISCLI_AUTH=admin-secret {client} SET kept yes")
    assert host.run("arches-backup redis").rc == 0
    folder = host.check_output("mktemp -d")
    try:
        host.check_output(f"arches-backup redis-fetch {folder}/dump.rdb")
        assert host.file(f"{folder}/dump.rdb").mode == 0o600
        feed(host, f"redis-server --port 0 --unixsocket {folder}/socket --dir {folder} --daemonize yes")
        answer = f"redis-cli -s {folder}/socket GET kept"
        wait_for("the copy answers", lambda: host.run(answer).stdout.strip() == "yes", 20)
        feed(host, f"redis-cli -s {folder}/socket SHUTDOWN NOSAVE")
    finally:
        feed(host, f"rm -rf {folder}")
    assert host.file("/var/lib/arches-backup").mode == 0o700
    assert host.check_output("find /var/lib/arches-backup -type f") == "", "nothing in the clear stays"


def test_copies_of_redis_are_counted(host: Host) -> None:
    for _ in range(3):
        host.check_output("arches-backup redis")
        name = host.check_output("date +%s")
        wait_for("another second: copies are named by it", lambda name=name: host.check_output("date +%s") != name, 3)
    assert s3(host, "GET", "backups?list-type=2&prefix=redis%2F")[1].count("<Key>") == 2, "backup_keep_redis"


def test_backups_are_bounded_and_give_way(host: Host) -> None:
    shown = host.check_output("systemctl show -p MemoryMax -p Nice -p IOSchedulingPriority arches-backup@full")
    assert set(shown.split()) == {"MemoryMax=268435456", "Nice=10", "IOSchedulingPriority=7"}
    assert "MemoryMax=268435456" in host.check_output("systemctl show -p MemoryMax pgbackrest")


def test_only_members_reach_the_files(host: Host) -> None:
    """`store` has a certificate of the same CA, but is no data host."""
    folder = host.check_output("mktemp -d")
    for name in ("host.key", "host.crt"):
        content = machine("store").file(f"/etc/arches/tls/{name}").content_string
        feed(host, f"umask 077 && cat > {folder}/{name} && chown -R postgres {folder}", content)
    asked = f"--pg1-host-key-file={folder}/host.key --pg1-host-cert-file={folder}/host.crt"
    remote = f"--pg1-host={host.backend.get_hostname()} --pg1-host-type=tls --pg1-host-ca-file=/etc/arches/tls/ca.crt"
    try:
        stranger = host.run(f"{PGBACKREST} {remote} {asked} check")
    finally:
        feed(host, f"rm -rf {folder}")
    assert stranger.rc != 0 and "access denied" in stranger.stdout, stranger


def test_no_secret_is_in_the_journal(host: Host) -> None:
    journal = host.check_output("journalctl --no-pager -o cat")
    assert "pgbackrest" in journal
    assert not [secret for secret in SECRETS if secret in journal]
