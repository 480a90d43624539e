#!/usr/bin/python3
"""Backups of this fleet, as its timers and people ask for them.

    arches-backup due             make what the schedule asks for; does nothing on the hosts that do not make backups
    arches-backup full            make a full backup of Postgres now
    arches-backup differential    make a differential backup of Postgres now
    arches-backup redis           copy Redis into the store now
    arches-backup redis-fetch F   write the newest copy of Redis from the store to the file F
    arches-backup canary          on the leader, write the rows by which restores are judged
    arches-backup prepare         on the leader, give the backups their place in the store (--check: only say what is missing)

Every data host has the same timers and asks the same question: who makes backups now? The answer is the first
streaming replica by name, or the leader if there is none. What is due is read from the store, never from this host.

Exit status: 0 done, or nothing to do here; 75 another backup is being made; 1 anything else, in one sentence.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import json
import os
import pwd
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = Path("/etc/arches/backup.json")
SCRATCH = Path("/var/lib/arches-backup")
METRICS = Path("/var/lib/prometheus/node-exporter")
STREAMING = ("replica", "sync_standby", "quorum_standby")
KINDS = ("full", "differential", "redis")
PGBACKREST_TYPE = {"full": "full", "differential": "diff"}
# How a copy of Redis is called: when it began.
COPY_NAME = "%Y%m%dT%H%M%SZ.rdb.aes"
# What pgBackRest's `info` says of a store that it cannot read: another passphrase, or anything else.
UNREADABLE = (5, 99)
REDIS_TIMEOUT_S = 3600
# pgBackRest's own status for a lock that somebody else holds.
LOCKED = 50
CANARY_TIMEOUT_S = 30
PATRONI_TIMEOUT_S = 5
BUSY = 75

# Estimates of rows. Statistics of a new leader begin at nothing: until a table is analyzed there, its catalog entry
# (which is replicated) and what was written since stand for it.
CANARY = """
SET client_min_messages = warning;
BEGIN;
CREATE SCHEMA IF NOT EXISTS canary;
CREATE TABLE IF NOT EXISTS canary.beat (
    at timestamptz PRIMARY KEY DEFAULT clock_timestamp(), host text NOT NULL, rows jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS canary.landmark (id int PRIMARY KEY, embedding vector(3) NOT NULL);
INSERT INTO canary.landmark
    VALUES (1, '[1,0,0]'), (2, '[0,1,0]'), (3, '[0,0,1]'), (4, '[0.6,0.8,0]'), (5, '[0,0.6,0.8]'), (6, '[-1,0,0]')
    ON CONFLICT DO NOTHING;
INSERT INTO canary.beat (host, rows)
    SELECT :'host', coalesce(jsonb_object_agg(s.schemaname || '.' || s.relname, CASE
        WHEN coalesce(last_analyze, last_autoanalyze, last_vacuum, last_autovacuum) IS NOT NULL THEN n_live_tup
        ELSE greatest(c.reltuples, 0)::bigint + n_tup_ins - n_tup_del END), '{}')
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid WHERE s.schemaname <> 'canary';
DELETE FROM canary.beat WHERE at < clock_timestamp() - interval '7 days';
COMMIT;
"""


class BackupError(Exception):
    """What is wrong and what to do about it."""


class Busy(BackupError):
    """Somebody else makes a backup at this moment."""


class PatroniSilent(BackupError):
    """The local Patroni does not answer: this host neither leads nor makes backups."""


class Made(NamedTuple):
    """Something that the store has: `started` and `ended` in seconds since 1970, `size` in bytes there."""

    kind: str
    name: str
    started: float
    ended: float
    size: int


# --- decisions


def acting(members: Sequence[Mapping[str, Any]]) -> str:
    """Name of the member that makes backups. Raises BackupError when there is no leader."""
    leaders = [m["name"] for m in members if m["role"] == "leader" and m["state"] == "running"]
    if not leaders:
        raise BackupError("The cluster has no leader, so no backup can be made. Look at `patronictl list`.")
    replicas = [m["name"] for m in members if m["role"] in STREAMING and m["state"] == "streaming"]
    return str(min(replicas or leaders))


def newest(made: Sequence[Made], *kinds: str) -> Made | None:
    """The one of the given kinds that began last."""
    return max((one for one in made if one.kind in kinds), key=lambda one: one.started, default=None)


def due(made: Sequence[Made], schedule: Mapping[str, str], now: float) -> list[str]:
    """Kinds whose schedule has passed since the last of them began; one that was never made is due at once.

    A full backup serves as a differential one. Raises BackupError for a schedule that nobody understands.
    """

    def passed(kind: str, *serve: str) -> bool:
        last = newest(made, kind, *serve)
        return last is None or next_time(schedule[kind], last.started) <= now

    kinds = []
    if passed("full"):
        kinds.append("full")
    elif passed("differential", "full"):
        kinds.append("differential")
    if passed("redis"):
        kinds.append("redis")
    return kinds


def next_time(calendar: str, after: float) -> float:
    """First moment of a schedule (systemd's OnCalendar, UTC) after another, in seconds since 1970; inf for never.

    Raises BackupError for a schedule that systemd does not understand.
    """
    words = ["systemd-analyze", "calendar", f"--base-time=@{int(after)}", calendar]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    )
    if done.returncode:
        raise BackupError(
            f"The schedule {calendar!r} is no time that systemd knows. Correct `backups` in the inventory's main.yml, "
            f'for example "Sun *-*-* 02:00:00" (`systemd-analyze calendar` explains).'
        )
    for line in done.stdout.splitlines():
        label, _, value = line.strip().partition(": ")
        if label == "Next elapse" and value != "never":
            at = datetime.datetime.strptime(value.split(" ", 1)[1], "%Y-%m-%d %H:%M:%S UTC")
            return at.replace(tzinfo=datetime.UTC).timestamp()
    return float("inf")


def wanted(info: Mapping[str, Any], system_id: int, version: str) -> str | None:
    """What the store still needs before this database can be archived and backed up: a pgBackRest command, or None."""
    known = info.get("db") or []
    if not known:
        return "stanza-create"
    last = max(known, key=lambda one: one["id"])
    return None if (last["system-id"], last["version"]) == (system_id, version) else "stanza-upgrade"


def backups(info: Mapping[str, Any]) -> list[Made]:
    """Backups of the database as it is now, without those that failed."""
    known = info.get("db") or [{"id": 0}]
    current = max(known, key=lambda one: one["id"])["id"]
    kinds = {"full": "full", "diff": "differential"}
    return [
        Made(
            kinds[one["type"]], one["label"], one["timestamp"]["start"], one["timestamp"]["stop"],
            one["info"]["repository"]["delta"],
        )
        for one in info.get("backup") or []
        if one["database"]["id"] == current and not one["error"] and one["type"] in kinds
    ]  # fmt: skip


def explain(status: int, said: str) -> BackupError:
    """A failure of pgBackRest in a sentence that names the fix; its own words stand in the log above."""
    last = next((line for line in said.splitlines() if line.startswith("ERROR:")), said.strip().splitlines()[-1:] or "")
    if status == LOCKED:
        return Busy("Another backup is being made (pgBackRest's lock is held). Wait for it: `pgbackrest info`.")
    for sign, meaning in (
        ("403", "The store refuses the account: compare vault_s3_backups_* with the store's accounts, and its rights."),
        ("404", "The store has no such bucket: create it, or correct `object_store.bucket` in the inventory."),
        (
            "CryptoError",
            "What is stored was encrypted with another passphrase: put the former vault_backup_passphrase back.",
        ),
        (
            "unable to find primary cluster",
            "No leader can be reached: look at `patronictl list`, and at pgbackrest.service there.",
        ),
        (
            "unable to verify certificate",
            "A certificate does not fit: look at `backup_store_ca_file` and the names it is for.",
        ),
    ):
        if sign in said:
            return BackupError(f"{meaning} ({last})")
    return BackupError(f"pgBackRest failed with status {status}: {last}")


# --- the world


class Fleet:
    """This host and whom it talks to, as `/etc/arches/backup.json` says."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.name: str = config["name"]

    def ask_patroni(self, path: str) -> tuple[int, Any]:
        """Status and decoded answer of the local Patroni. Raises PatroniSilent."""
        url = self.config["patroni"] + path
        context = ssl.create_default_context(cafile=self.config["ca_file"])
        try:
            with urllib.request.urlopen(url, context=context, timeout=PATRONI_TIMEOUT_S) as answer:  # noqa: S310 - https
                return int(answer.status), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, ValueError) as error:
            raise PatroniSilent(
                f"Patroni on {self.name} does not answer ({error}). Start it: systemctl start patroni."
            ) from error

    def leads(self) -> bool:
        """Whether this host holds the leader's lock. Raises PatroniSilent."""
        return self.ask_patroni("/primary")[0] == 200

    def acting(self) -> str:
        """Name of the host that makes backups. Raises BackupError."""
        return acting(self.ask_patroni("/cluster")[1].get("members", []))

    def pgbackrest(self, *words: str) -> str:
        """Run pgBackRest as the database's user and return what it printed. Raises BackupError."""
        done = as_postgres(["pgbackrest", f"--stanza={self.config['stanza']}", *words])
        if done.returncode:
            raise explain(done.returncode, done.stdout + done.stderr)
        return done.stdout

    def info(self) -> dict[str, Any]:
        """What the store has of this database. Raises BackupError when it cannot be asked."""
        info: dict[str, Any] = json.loads(self.pgbackrest("info", "--output=json"))[0]
        if info["status"]["code"] in UNREADABLE:
            raise explain(info["status"]["code"], json.dumps(info.get("repo")))
        return info

    def identity(self) -> tuple[int, str]:
        """System identifier and major version of the local database. Raises BackupError."""
        words = sql(
            "SELECT system_identifier, current_setting('server_version_num')::int / 10000 FROM pg_control_system()"
        )
        system_id, version = words.split("|")
        return int(system_id), version

    def store(self, method: str, key: str, *options: str, query: str = "", timeout_s: int = 60) -> str:
        """One request to the store, signed by curl; its secret goes in by stdin. Raises BackupError."""
        store = self.config["store"]
        url = f"{store['endpoint'].rstrip('/')}/{store['bucket']}/{urllib.parse.quote(key)}{query}"
        words = ["curl", "--config", "-", "--silent", "--show-error", "--fail-with-body", "--request", method]
        words += ["--aws-sigv4", f"aws:amz:{store['region']}:s3", "--connect-timeout", str(store["timeout_s"])]
        words += ["--max-time", str(timeout_s), "--retry", "3", *options, url]
        if store["ca_file"]:
            words += ["--cacert", store["ca_file"]]
        secret = f'user = "{store["access_key"]}:{store["secret_key"]}"\n'
        done = subprocess.run(words, input=secret, capture_output=True, text=True, check=False)
        if done.returncode:
            raise explain(done.returncode, f"{done.stderr.strip()} {done.stdout.strip()}")
        return done.stdout

    def copies(self) -> list[Made]:
        """Copies of Redis in the store, the oldest first. Raises BackupError."""
        listed = ElementTree.fromstring(self.store("GET", "", query="?list-type=2&prefix=redis%2F"))  # noqa: S314 - our store
        found = []
        for one in listed.iterfind("{*}Contents"):
            key, size, modified = (one.findtext(f"{{*}}{field}") or "" for field in ("Key", "Size", "LastModified"))
            began = datetime.datetime.strptime(key.rpartition("/")[2], COPY_NAME).replace(tzinfo=datetime.UTC)
            ended = datetime.datetime.fromisoformat(modified)
            found.append(Made("redis", key, began.timestamp(), ended.timestamp(), int(size)))
        return sorted(found, key=lambda copy: copy.started)

    def redis_cli(self, address: str, *words: str) -> str:
        """Ask one Redis. Raises BackupError."""
        redis = self.config["redis"]
        command = ["redis-cli", "-h", address, "-p", str(redis["port"]), "--tls", "--cacert", self.config["ca_file"]]
        command += ["--user", redis["user"], *words]
        environment = {**os.environ, "REDISCLI_AUTH": redis["password"]}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=REDIS_TIMEOUT_S
        )
        said = done.stdout.strip() or done.stderr.strip()
        if done.returncode or said.startswith(("ERR", "NOPERM", "WRONGPASS", "NOAUTH", "AUTH failed")):
            raise BackupError(f"Redis at {address} refuses {words[0]}: {done.stderr.strip()} {said}")
        return done.stdout

    def redis_source(self) -> dict[str, str]:
        """The Redis to copy: the first replica in sync by name, or the leader if there is none. Raises BackupError."""
        leader, refusals = None, []
        for member in sorted(self.config["members"], key=lambda one: str(one["name"])):
            try:
                role = self.redis_cli(member["address"], "ROLE").split()
            except (BackupError, subprocess.TimeoutExpired) as error:
                refusals.append(str(error))
                continue
            if role[0] == "slave" and "connected" in role:
                return dict(member)
            if role[0] == "master":
                leader = leader or dict(member)
        if leader is None:
            raise BackupError(
                f"No Redis can be copied ({'; '.join(refusals)}). Look at `systemctl status redis-server`."
            )
        return leader


# --- what is done


def back_up(fleet: Fleet, kind: str) -> None:
    """Make a backup of Postgres. Raises BackupError."""
    began = time.monotonic()
    said = fleet.pgbackrest("backup", f"--type={PGBACKREST_TYPE[kind]}")
    print(said, end="")
    print(f"{kind}: done in {time.monotonic() - began:.1f} s")


def copy_redis(fleet: Fleet) -> None:
    """Copy Redis: check the copy, encrypt it, send it, let old ones go. Raises BackupError."""
    began = time.time()
    source = fleet.redis_source()
    at = datetime.datetime.fromtimestamp(began, datetime.UTC).strftime(COPY_NAME)
    SCRATCH.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        plain, sealed = Path(folder) / "redis.rdb", Path(folder) / "redis.rdb.aes"
        fleet.redis_cli(source["address"], "--rdb", str(plain))
        run(["redis-check-rdb", str(plain)], "The copy of Redis is damaged")
        seal(fleet, plain, sealed)
        with sealed.open("rb") as file:
            md5 = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()  # noqa: S324 - what S3 checks by
        fleet.store(
            "PUT",
            f"redis/{source['name']}/{at}",
            "--upload-file",
            str(sealed),
            "--header",
            f"Content-MD5: {md5}",
            timeout_s=3600,
        )
    for old in fleet.copies()[: -fleet.config["redis"]["keep"]]:
        fleet.store("DELETE", old.name)
    print(f"redis: {source['name']} copied in {time.time() - began:.1f} s")


def seal(fleet: Fleet, source: Path, target: Path, *, opened: bool = False) -> None:
    """Encrypt a file, or decrypt it with `opened`. Raises BackupError."""
    command = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-pass", "stdin"]
    command += ["-in", str(source), "-out", str(target), *(["-d"] if opened else [])]
    run(command, "The passphrase does not fit, or the file is damaged", fleet.config["passphrase"] + "\n")


def fetch_redis(fleet: Fleet, target: Path) -> None:
    """Write the newest copy of Redis to a file. Raises BackupError."""
    copies = fleet.copies()
    if not copies:
        raise BackupError("The store has no copy of Redis: make one with `arches-backup redis`.")
    SCRATCH.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        sealed = Path(folder) / "redis.rdb.aes"
        fleet.store("GET", copies[-1].name, "--output", str(sealed), timeout_s=3600)
        seal(fleet, sealed, target, opened=True)
    run(["redis-check-rdb", str(target)], "The copy of Redis is damaged")
    print(f"{target} is {copies[-1].name}")


def make_due(fleet: Fleet) -> None:
    """Make what is due, if this host makes backups, and publish what the store has. Raises BackupError."""
    if fleet.acting() != fleet.name:
        return
    try:
        for kind in due(stored(fleet), fleet.config["schedule"], time.time()):
            print(f"{kind} is due")
            make(fleet, kind)
    finally:
        publish(stored(fleet))


def make(fleet: Fleet, kind: str) -> None:
    """Make one backup. Raises BackupError."""
    copy_redis(fleet) if kind == "redis" else back_up(fleet, kind)


def stored(fleet: Fleet) -> list[Made]:
    """Everything that the store has. Raises BackupError."""
    return backups(fleet.info()) + fleet.copies()


def publish(made: Sequence[Made]) -> None:
    """Tell monitoring what the store has, whichever host made it."""
    lines = []
    for kind in KINDS:
        if last := newest(made, kind):
            label = f'{{type="{kind}"}}'
            lines += [
                f"arches_backup_last_success_timestamp_seconds{label} {last.ended:.0f}",
                f"arches_backup_duration_seconds{label} {last.ended - last.started:.0f}",
                f"arches_backup_size_bytes{label} {last.size}",
            ]
    write_metrics("backup", lines)


def write_metrics(name: str, lines: Sequence[str]) -> None:
    """Replace one of the node exporter's text files."""
    METRICS.mkdir(parents=True, exist_ok=True)
    target = METRICS / f"{name}.prom"
    fresh = target.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.chmod(0o644)
    fresh.replace(target)


def sing(fleet: Fleet) -> None:
    """Write the canary rows, if this host leads. Raises BackupError."""
    if not fleet.leads():
        return
    sql(CANARY, f"host={fleet.name}")
    write_metrics("canary", [f"arches_canary_last_success_timestamp_seconds {time.time():.0f}"])


def prepare(fleet: Fleet, check: bool) -> None:
    """Make the schedule sure and, if this host leads, the store ready. Prints what changed. Raises BackupError."""
    for calendar in fleet.config["schedule"].values():
        next_time(calendar, time.time())
    if not fleet.leads():
        return
    command = wanted(fleet.info(), *fleet.identity())
    if command is None:
        return
    if not check:
        fleet.pgbackrest(command)
    print(command)


# --- other programs


def run(command: Sequence[str], failure: str, given: str = "", **options: Any) -> str:
    """Run a program and return what it printed. Raises BackupError that begins with `failure`."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise BackupError(f"{failure}: {(done.stderr.strip() or done.stdout.strip())[-500:]}")
    return done.stdout


def sql(statements: str, *variables: str) -> str:
    """What the local database answers to its superuser. Raises BackupError."""
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "arches", "-U", "postgres"]
    for variable in variables:
        command += ["-v", variable]
    try:
        return run(command, "Postgres refuses", statements, timeout=CANARY_TIMEOUT_S).strip()
    except subprocess.TimeoutExpired:
        raise BackupError(
            f"Postgres did not answer within {CANARY_TIMEOUT_S} s: is a synchronous standby missing? Look at `patronictl list`."
        ) from None


def as_postgres(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program as the database's user, with its groups."""
    user = pwd.getpwnam("postgres")
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin", "LC_ALL": "C.UTF-8"},
        user=user.pw_uid, group=user.pw_gid, extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["due", *KINDS, "redis-fetch", "canary", "prepare"])
    parser.add_argument("file", nargs="?", type=Path, help="where redis-fetch writes")
    parser.add_argument("--check", action="store_true", help="prepare: change nothing")
    given = parser.parse_args(arguments)
    if given.verb == "redis-fetch" and given.file is None:
        parser.error("redis-fetch needs a file to write")
    try:
        fleet = Fleet(json.loads(CONFIG.read_text()))
        if given.verb in KINDS:
            make(fleet, given.verb)
            publish(stored(fleet))
        else:
            {
                "due": lambda: make_due(fleet), "canary": lambda: sing(fleet),
                "prepare": lambda: prepare(fleet, given.check), "redis-fetch": lambda: fetch_redis(fleet, given.file),
            }[given.verb]()  # fmt: skip
    except Busy as error:
        print(error, file=sys.stderr)
        return 0 if given.verb == "due" else BUSY
    except PatroniSilent as error:
        print(error, file=sys.stderr)
        return 0 if given.verb in ("due", "canary") else 1
    except (BackupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
