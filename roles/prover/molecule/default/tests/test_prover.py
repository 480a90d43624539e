"""Proofs of real backups; and each thing that can be wrong with them, done to them."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testinfra.host import Host

from lib.scenario import feed, machine
from lib.waiting import wait_for

testinfra_hosts = ["ansible://ops1"]

STATE = "/var/lib/arches-prover"
SCRATCH = f"{STATE}/scratch"
SETTINGS = "/etc/arches-prover/prover.json"
METRICS = "/var/lib/prometheus/node-exporter/arches-prover.prom"
OBJECTS = "/var/lib/versitygw/store/objects"
STORE = f"{OBJECTS}/backups/pgbackrest"
DROP_IN = "/run/systemd/system/arches-prover.service.d"
HOLD = "/opt/hold"
CHECKS = ["backup", "wal", "canary", "rows", "vector", "structure"]
# Longer than any proof here takes on a busy computer.
LONG_S = 120


def sql(statement: str) -> str:
    """What the data host's Postgres answers to its superuser."""
    return feed(machine("data1"), "psql -XAtqU postgres -v ON_ERROR_STOP=1 arches", statement).strip()


def archive_now() -> str:
    """A canary is written and everything until now is archived; returns the newest segment."""
    machine("data1").check_output("systemctl start arches-canary")
    segment = sql("SELECT pg_walfile_name(pg_switch_wal())")
    archived = "SELECT last_archived_wal FROM pg_stat_archiver"
    wait_for("WAL is archived", lambda: sql(archived) >= segment, timeout_s=LONG_S)
    return segment


def report(host: Host) -> dict[str, Any]:
    """What the last attempt left."""
    return dict(json.loads(host.file(f"{STATE}/last.json").content_string))


def prove(host: Host) -> dict[str, Any]:
    """One attempt: its report. Whatever became of it, nothing of the copy is left."""
    done = host.run("systemctl start arches-prover")
    made = report(host)
    assert made["finished"] and made["proven"] == (done.rc == 0), made
    assert left_over(host) == ("", "")
    return made


def ended(host: Host) -> str:
    """How the service has ended, empty while it runs: its last words come after the report, its metrics after those."""
    state = host.check_output("systemctl show -P ActiveState arches-prover").strip()
    return state if state in ("inactive", "failed") else ""


def left_over(host: Host) -> tuple[str, str]:
    """Processes and files of a copy; before the first attempt there is no folder for one."""
    return host.run("pgrep -u postgres -a").stdout.strip(), host.run(f"ls -A {SCRATCH}").stdout.strip()


def failed(made: dict[str, Any]) -> list[str]:
    """Names of the checks that failed."""
    return [check["name"] for check in made["checks"] if not check["passed"]]


def metrics(host: Host) -> dict[str, float]:
    """What Prometheus is told."""
    lines = host.file(METRICS).content_string.splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines)}


@contextmanager
def environment(host: Host, option: str, value: str, **more: str) -> Iterator[None]:
    """The service has another setting of pgBackRest, for a while, and more variables."""
    name = option.replace("-", "_").upper()
    variables = {f"PGBACKREST_{name}": value, **more}
    lines = "".join(f"Environment={name}={value}\n" for name, value in variables.items())
    feed(host, f"mkdir -p {DROP_IN} && cat > {DROP_IN}/test.conf && systemctl daemon-reload", f"[Service]\n{lines}")
    try:
        yield
    finally:
        feed(host, f"rm -r {DROP_IN} && systemctl daemon-reload")


# Waits before the command that the variable HELD names until there is a file `go`.
WAITS = f"""#!/bin/sh
case " $* " in *" $HELD "*)
  touch /run/arches-prover/held
  until [ -e {HOLD}/go ]; do sleep 0.1; done
esac
exec /usr/bin/pgbackrest "$@"
"""


@contextmanager
def held(host: Host, verb: str) -> Iterator[None]:
    """An attempt waits before this command of pgBackRest, which loses patience with the store after a second."""
    feed(host, f"rm -rf {HOLD}; mkdir {HOLD}; cat > {HOLD}/pgbackrest; chmod 755 {HOLD}/pgbackrest", WAITS)
    with environment(host, "io-timeout", "1", PATH=f"{HOLD}:/usr/local/bin:/usr/bin:/bin", HELD=verb):
        host.check_output("systemctl start --no-block arches-prover")
        wait_for("it is at it", lambda: host.file("/run/arches-prover/held").exists, LONG_S)
        try:
            yield
        finally:
            host.check_output("touch %s/go", HOLD)
            wait_for("the service has ended", lambda: ended(host), LONG_S)


@contextmanager
def settings(host: Host, **changes: Any) -> Iterator[None]:
    """The prover has other settings of its own, for a while."""
    before = host.file(SETTINGS).content_string
    feed(host, f"cat > {SETTINGS}", json.dumps(json.loads(before) | changes))
    try:
        yield
    finally:
        feed(host, f"cat > {SETTINGS}", before)


@contextmanager
def damaged(host: Host, file: str) -> Iterator[None]:
    """The beginning of a file of the store is something else, for a while: what lies further on may mean nothing."""
    path = shlex.quote(file)
    overwrite = f"head -c 64 /dev/zero | dd of={path} bs=64 seek=1 conv=notrunc status=none"
    feed(host, f"cp --preserve=all {path} /var/tmp/whole && {overwrite}")
    try:
        yield
    finally:
        feed(host, f"dd if=/var/tmp/whole of={path} conv=notrunc status=none && rm /var/tmp/whole")


@contextmanager
def missing(host: Host, file: str) -> Iterator[None]:
    """A file of the store is not there, for a while."""
    feed(host, f"mv {shlex.quote(file)} /var/lib/versitygw/aside")
    try:
        yield
    finally:
        feed(host, f"mv /var/lib/versitygw/aside {shlex.quote(file)}")


@contextmanager
def small_disk(host: Host, mib: int) -> Iterator[None]:
    """The scratch folder is a disk of its own, for a while."""
    feed(host, f"mount -t tmpfs -o size={mib}m,mode=0755,uid=postgres tmpfs {SCRATCH}")
    try:
        yield
    finally:
        feed(host, f"umount {SCRATCH}")


def stored(host: Host, pattern: str) -> str:
    """The one file of the store whose path fits."""
    found = host.check_output(
        f"find {STORE} -type f -path {shlex.quote(pattern)} -printf '%s %p\\n' | sort -n"
    ).splitlines()
    assert found, pattern
    return found[-1].partition(" ")[2]


@pytest.fixture(scope="module", autouse=True)
def backup() -> None:
    """A backup, and WAL after it: rows, and some more segments."""
    if "full backup" not in machine("data1").check_output("cd / && runuser -u postgres pgbackrest info"):
        machine("data1").check_output("arches-backup full")
    sql("INSERT INTO note SELECT max(id) + 1, 'after the backup' FROM note")
    for _ in range(3):
        archive_now()


def test_no_postgres_runs_by_itself(host: Host) -> None:
    assert left_over(host)[0] == ""
    assert host.run("ls -A /etc/postgresql /var/lib/postgresql/17").stdout.strip() in ("", "/etc/postgresql:")
    assert not host.socket("tcp://127.0.0.1:5432").is_listening


def test_a_proof_is_due_by_the_schedule(host: Host) -> None:
    timer = host.check_output("systemctl show -p ActiveState,TimersCalendar arches-prover.timer")
    assert "ActiveState=active" in timer and "OnCalendar=*-*-* 04:00:00" in timer
    assert host.service("arches-prover.timer").is_enabled


def test_secrets_are_roots(host: Host) -> None:
    assert host.file("/etc/arches-prover/pgbackrest.conf").mode == 0o600
    shown = host.check_output("systemctl show -p MemoryMax,User arches-prover")
    assert set(shown.split()) == {f"MemoryMax={256 * 1048576}", "User=postgres"}


def test_a_whole_backup_is_proven_and_told_and_the_store_stays_as_it_was(host: Host) -> None:
    newest = archive_now()
    listing = f"find {STORE} -type f -not -path '*/archive/*' -printf '%p %s %T@\\n' | sort"
    before = host.check_output(listing.replace("%", "%%"))
    assert before
    made = prove(host)
    assert made["proven"] and made["why"] == "every check passed", made
    assert [check["name"] for check in made["checks"]] == CHECKS and failed(made) == []
    assert 0 <= made["rpo_s"] <= 180
    assert made["backup"]["newest_wal"] >= newest
    rows = next(check["why"] for check in made["checks"] if check["name"] == "rows")
    assert rows == f"{sql('SELECT count(*) FROM note')} rows in 1 tables"
    assert host.check_output(listing.replace("%", "%%")) == before
    assert host.run("find %s -name '00000002*'", STORE).stdout == "", "the copy archived a timeline of its own"
    told = metrics(host)
    assert told["arches_restore_last_attempt_success"] == 1
    assert told["arches_restore_last_proven_timestamp_seconds"] == made["finished"] == made["last_proven"]["at"]
    assert told["arches_restore_last_attempt_timestamp_seconds"] == made["started"]
    assert told["arches_restore_duration_seconds"] == made["last_proven"]["duration_s"] > 0
    assert told["arches_restore_rpo_seconds"] == made["rpo_s"]
    assert told["arches_restore_interval_seconds"] == 86400
    assert host.file(METRICS).mode == 0o644 and host.file(f"{STATE}/last.json").mode == 0o644


# Tries to write and to delete with the account of the prover's own configuration, and prints what became of it.
MISUSE = """
import boto3, botocore.config, botocore.exceptions, configparser
config = configparser.ConfigParser()
config.read("/etc/arches-prover/pgbackrest.conf")
given = config["global"]
store = boto3.client("s3", endpoint_url="https://ops1:7070", region_name="local", verify=given["repo1-storage-ca-file"],
    aws_access_key_id=given["repo1-s3-key"], aws_secret_access_key=given["repo1-s3-key-secret"],
    config=botocore.config.Config(signature_version="s3v4", request_checksum_calculation="when_required"))
key = store.list_objects_v2(Bucket="backups")["Contents"][0]["Key"]
for verb, words in (("put_object", {"Body": b"x"}), ("delete_object", {})):
    try:
        getattr(store, verb)(Bucket="backups", Key=key, **words)
        print("done")
    except botocore.exceptions.ClientError as error:
        print(error.response["Error"]["Code"])
"""


def test_the_provers_account_changes_nothing(host: Host) -> None:
    assert feed(host, "python3 -", MISUSE).split() == ["AccessDenied", "AccessDenied"]


def test_another_passphrase_is_no_proof_and_the_last_one_is_remembered(host: Host) -> None:
    before = report(host)["last_proven"]
    with environment(host, "repo1-cipher-pass", "another"):
        made = prove(host)
    assert not made["proven"] and "passphrase" in made["why"], made
    assert made["last_proven"] == before
    told = metrics(host)
    assert told["arches_restore_last_attempt_success"] == 0
    assert told["arches_restore_last_proven_timestamp_seconds"] == before["at"]
    assert host.service("arches-prover").systemd_properties["ActiveState"] == "failed"


def test_another_account_is_no_proof(host: Host) -> None:
    with environment(host, "repo1-s3-key-secret", "another"):
        made = prove(host)
    assert not made["proven"] and "403" in made["why"], made


def test_no_backup_is_no_proof(host: Host) -> None:
    with environment(host, "repo1-path", "/elsewhere"):
        made = prove(host)
    assert not made["proven"] and "there is no backup in the store" in made["why"], made


def test_a_damaged_backup_is_no_proof(host: Host) -> None:
    label = report(host)["last_proven"]["backup"]
    with damaged(host, stored(host, f"*/backup/arches/{label}/bundle/*")):
        made = prove(host)
    assert not made["proven"] and made["checks"] == [], made


def test_a_missing_segment_of_wal_is_no_proof(host: Host) -> None:
    newest = archive_now()
    lost = f"{int(newest, 16) - 1:024X}"
    with missing(host, stored(host, f"*/archive/arches/*/{lost}-*")):
        made = prove(host)
    assert "wal" in failed(made) and f"the archive has {made['backup']['newest_wal']}" in made["why"], made


def test_a_damaged_segment_of_wal_is_no_proof(host: Host) -> None:
    newest = archive_now()
    with damaged(host, stored(host, f"*/archive/arches/*/{newest}-*")):
        made = prove(host)
    assert not made["proven"] and ("wal" in failed(made) or newest in made["why"]), made


def test_no_room_is_said_before_anything_is_restored(host: Host) -> None:
    with small_disk(host, 100):
        made = prove(host)
    assert not made["proven"] and "has 100 MiB free, the copy needs" in made["why"], made
    assert "restore" not in made["seconds"]


def test_a_disk_that_fills_is_no_proof(host: Host) -> None:
    size = report(host)["backup"]["size_bytes"] // 1048576
    with settings(host, spare_mb=0), small_disk(host, size + 4):
        made = prove(host)
    assert not made["proven"] and f"{SCRATCH} is full" in made["why"], made


def test_every_check_speaks_and_can_fail(host: Host) -> None:
    """Rows that went after the canary, an index that knows none of its rows, landmarks elsewhere, an old canary."""
    sql(
        "CREATE TABLE victim (id int PRIMARY KEY); CREATE TABLE odd (id int PRIMARY KEY);"
        "INSERT INTO victim SELECT generate_series(1, 1000);"
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'odd_pkey'::regclass"
    )
    sql("INSERT INTO odd SELECT generate_series(1, 1000)")
    sql("UPDATE pg_index SET indisready = true WHERE indexrelid = 'odd_pkey'::regclass")
    machine("data1").check_output("systemctl start arches-canary")
    try:
        sql("DELETE FROM victim; UPDATE canary.landmark SET embedding = '[9,9,9]' WHERE id = 1")
        segment = sql("SELECT pg_walfile_name(pg_switch_wal())")
        wait_for("WAL is archived", lambda: sql("SELECT last_archived_wal FROM pg_stat_archiver") >= segment, LONG_S)
        with settings(host, rpo_s=0):
            made = prove(host)
    finally:
        sql("DROP TABLE victim, odd; UPDATE canary.landmark SET embedding = '[1,0,0]' WHERE id = 1")
    said = {check["name"]: check["why"] for check in made["checks"]}
    assert list(said) == CHECKS and failed(made) == ["canary", "rows", "vector", "structure"], made
    assert "at most 0 s are allowed" in said["canary"]
    assert said["rows"] == "public.victim has 0 rows, about 1000 were there"
    assert "are [4, 2, 5, 3, 6, 1], not [1, 4, 2, 5, 3, 6]" in said["vector"]
    assert "odd_pkey" in said["structure"]
    archive_now()


def test_a_store_that_comes_back_is_waited_for(host: Host) -> None:
    """It has told of the backup, and is gone when its files are asked for."""
    said = "journalctl -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID arches-prover)"
    with held(host, "restore"):
        host.check_output("systemctl stop arches-versitygw")
        try:
            host.check_output("touch %s/go", HOLD)
            wait_for("the store is missed", lambda: "trying again" in host.check_output(said), LONG_S)
        finally:
            host.check_output("systemctl start arches-versitygw")
    assert report(host)["proven"], report(host)
    assert left_over(host) == ("", "")


def test_a_store_that_falls_silent_while_wal_is_replayed_ends_nothing_early(host: Host) -> None:
    """It takes connections and says nothing: that is not the end of the archive."""
    archive_now()
    missed = "grep 'trying again' /run/arches-prover/postgres.log"
    with held(host, "archive-get"):
        host.check_output("systemctl kill -s STOP arches-versitygw")
        try:
            host.check_output("touch %s/go", HOLD)
            wait_for("the store is missed", lambda: host.run(missed).rc == 0, LONG_S)
        finally:
            host.check_output("systemctl kill -s CONT arches-versitygw")
    assert report(host)["proven"], report(host)
    assert left_over(host) == ("", "")


def test_a_store_that_stays_away_is_no_proof(host: Host) -> None:
    host.check_output("systemctl stop arches-versitygw")
    try:
        with settings(host, patience_s=1), environment(host, "io-timeout", "1"):
            made = prove(host)
    finally:
        host.check_output("systemctl start arches-versitygw")
    assert not made["proven"] and "the store did not come back within 1 s" in made["why"], made


def running(host: Host) -> str:
    """Process of an attempt whose copy runs."""
    feed(host, "systemctl start --no-block arches-prover; until test -e /run/arches-prover/postgres.log; do :; done")
    return host.check_output("systemctl show -p MainPID --value arches-prover").strip()


def test_a_killed_attempt_is_told_and_its_copy_is_removed_by_the_next(host: Host) -> None:
    host.check_output("kill -9 %s", running(host))
    wait_for("the service has ended", lambda: ended(host) == "failed", 30)
    assert left_over(host)[0] == "" and left_over(host)[1] == "data"
    made = report(host)
    assert made["finished"] is None and "killed" in made["why"]
    assert metrics(host)["arches_restore_last_attempt_success"] == 0
    assert prove(host)["proven"]


def test_a_stopped_attempt_says_so_and_leaves_nothing(host: Host) -> None:
    running(host)
    host.check_output("systemctl stop arches-prover")
    made = report(host)
    assert not made["proven"] and made["why"] == "stopped by SIGTERM before it was done", made
    assert left_over(host) == ("", "")
