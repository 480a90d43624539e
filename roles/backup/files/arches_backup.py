#!/usr/bin/python3
"""Backups of this fleet, as its timers and people ask for them.

    arches-backup due            make what the schedule asks for, if this host is the one that makes backups
    arches-backup full           make a full backup of Postgres now
    arches-backup differential   make a differential backup of Postgres now
    arches-backup redis          copy Redis into the store now
    arches-backup redis-fetch F  write the newest copy of Redis to the file F
    arches-backup canary         write the rows by which restores are judged, if this host leads
    arches-backup prepare        give the backups their place in the store, if this host leads (--check: change nothing)
    arches-backup deleted        say, as JSON, what was deleted in the store and what of it can come back
    arches-backup bring-back     put back what was there at a moment and was deleted since (--at)

Every data host has the same timers and asks the same question: who makes backups now? The answer is the first
streaming replica by name, or the leader if there is none. What is due is read from the store, never from this host.

Exit status: 0 done, or nothing to do here; 75 another backup is being made; 1 anything else, in one sentence.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import datetime
import hashlib
import json
import math
import os
import pwd
import re
import shutil
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

# Kinds of backups, with pgBackRest's own names.
POSTGRES = {"full": "full", "differential": "diff"}
KINDS = (*POSTGRES, "redis")
STREAMING = ("replica", "sync_standby", "quorum_standby")
# How a copy of Redis is called: when it began.
COPY_NAME = "%Y%m%dT%H%M%SZ.rdb.aes"

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID = re.compile("[0-7][" + CROCKFORD + "]{25}")
# pgBackRest's own lists of what there is, each with a second copy.
LISTS = (".info", ".info.copy")
# Whoever deletes everything needs no longer than this from one object to the next.
AT_ONCE_S = 60
# Requests to the store at once.
PARALLEL = 8
# pgBackRest's status for a lock that somebody else holds, and ours.
LOCKED, BUSY = 50, 75
# What pgBackRest's `info` says of a store that it cannot read.
UNREADABLE = (5, 99)
PATRONI_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 30
TRANSFER_TIMEOUT_S = 3600

# Failures by their signs, in the words of pgBackRest, curl and openssl; the first that fits counts.
REMEDIES = (
    (
        ("unable to find primary",),
        "No leader can be reached: look at `patronictl list`, and there at `systemctl status pgbackrest`.",
    ),
    (
        ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", " 403"),
        "The store refuses the account: compare vault_s3_backups_* with the accounts of the store and their rights.",
    ),
    (
        ("NoSuchBucket",),
        "The store has no such bucket: make it, or correct `object_store.bucket` in the inventory.",
    ),
    (
        ("AuthorizationHeaderMalformed",),
        "The store has another region: correct `object_store.region` in the inventory.",
    ),
    (
        ("unable to verify certificate", "SSL certificate problem"),
        "The store's certificate is not trusted: correct `object_store.ca_file` in the inventory.",
    ),
    (
        ("outside of section", "CryptoError", "bad decrypt"),
        "What is stored was encrypted with another passphrase: put the former vault_backup_passphrase back.",
    ),
    (
        ("HostConnectError", "timeout connecting", "Could not resolve", "Could not connect", "Failed to connect"),
        "The store does not answer: look whether it runs and can be reached from here (`object_store.endpoint`).",
    ),
)  # fmt: skip

# Estimates of rows by table. The statistics of a new leader begin at nothing: until a table is analyzed there, its
# catalog entry, which is replicated, and what was written since stand for it.
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


class Leaderless(BackupError):
    """Nobody leads Postgres: there is nothing to copy, until somebody does."""


class Version(NamedTuple):
    """One version of an object of the store, or the marker that says it was deleted; `since` in seconds since 1970."""

    key: str
    version_id: str
    marker: bool
    since: float
    size: int
    etag: str = ""


class Made(NamedTuple):
    """Something that the store has: `started` and `ended` in seconds since 1970, `size` in bytes there."""

    kind: str
    name: str
    started: float
    ended: float
    size: int


# --- What is decided


def acting(members: Sequence[Mapping[str, Any]]) -> str:
    """Name of the member that makes backups. Raises Leaderless."""
    leaders = [m["name"] for m in members if m["role"] == "leader" and m["state"] == "running"]
    if not leaders:
        raise Leaderless("The cluster has no leader, so no backup can be made: look at `patronictl list`.")
    replicas = [m["name"] for m in members if m["role"] in STREAMING and m["state"] == "streaming"]
    return str(min(replicas or leaders))


def newest(made: Sequence[Made], *kinds: str) -> Made | None:
    """The one of the given kinds that began last."""
    return max((one for one in made if one.kind in kinds), key=lambda one: one.started, default=None)


def due(made: Sequence[Made], schedule: Mapping[str, str], now: float) -> list[str]:
    """Kinds whose time has come since the last of them began; one that was never made is due at once.

    A full backup serves as a differential one. Raises BackupError for a schedule that nobody understands.
    """

    def passed(kind: str, *serving: str) -> bool:
        last = newest(made, kind, *serving)
        return last is None or next_time(schedule[kind], last.started) <= now

    kinds = ["full"] if passed("full") else ["differential"] if passed("differential", "full") else []
    return [*kinds, "redis"] if passed("redis") else kinds


def next_time(calendar: str, after: float) -> float:
    """First moment of a schedule (systemd's OnCalendar, UTC) after another, in seconds since 1970; inf for never.

    Raises BackupError for a schedule that systemd does not understand.
    """
    fix = "correct `backups` in the inventory's main.yml (`systemd-analyze calendar` explains what it takes)"
    said = run(
        ["systemd-analyze", "calendar", f"--base-time=@{int(after)}", calendar],
        f"The schedule {calendar!r} is none that systemd knows; {fix}",
        environment={"TZ": "UTC", "LC_ALL": "C.UTF-8"},
    )
    elapse = dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)["Next elapse"]
    if elapse == "never":
        return math.inf
    _, day, clock, _ = elapse.split()
    return datetime.datetime.fromisoformat(f"{day}T{clock}Z").timestamp()


def wanting(info: Mapping[str, Any], system_id: int, version: str) -> str | None:
    """What the store needs before this database can be archived and backed up: a command of pgBackRest, or None."""
    last = max(info["db"], key=lambda one: int(one["id"]), default=None)
    if last is None:
        return "stanza-create"
    return None if (last["system-id"], last["version"]) == (system_id, version) else "stanza-upgrade"


def whole_backups(info: Mapping[str, Any]) -> list[Made]:
    """Backups of the database as it is now, without the damaged ones."""
    current = max((one["id"] for one in info["db"]), default=None)
    kinds = {name: kind for kind, name in POSTGRES.items()}
    return [
        Made(
            kinds[one["type"]], one["label"], one["timestamp"]["start"], one["timestamp"]["stop"],
            one["info"]["repository"]["delta"],
        )
        for one in info["backup"]
        if one["database"]["id"] == current and not one["error"] and one["type"] in kinds
    ]  # fmt: skip


def created(version_id: str, modified: str) -> float:
    """When a version was made, in seconds since 1970.

    Of an older version versitygw shows when it ended, and of a marker how old the object was that it hides. But its
    names are ULIDs, whose first 48 bits are milliseconds (https://github.com/ulid/spec).
    """
    if ULID.fullmatch(version_id):
        milliseconds = 0
        for letter in version_id[:10]:
            milliseconds = 32 * milliseconds + CROCKFORD.index(letter)
        return milliseconds / 1000
    return datetime.datetime.fromisoformat(modified).timestamp()


def histories(versions: Sequence[Version]) -> dict[str, list[Version]]:
    """Every object's versions, the oldest first.

    :param versions: of all objects, as the store lists them: the newest of a key first.
    """
    keys: dict[str, list[Version]] = {}
    # Of two in the same second the store knows the order.
    oldest_first = versions[::-1]
    for version in sorted(oldest_first, key=lambda version: version.since):
        keys.setdefault(version.key, []).append(version)
    return keys


def hidden(versions: Sequence[Version], at: float) -> list[Version]:
    """What was current at a moment (seconds since 1970), or came later, and is not any more.

    pgBackRest's lists (*.info) are rewritten all the time, and one that is there now knows its own passphrases: they
    count only when they are deleted.
    """
    found = []
    for key, history in histories(versions).items():
        then = next((version for version in reversed(history) if version.since <= at), None)
        last = history[-1]
        # What came later; and of the lists always the last one, which names whatever was there in the end.
        if last.marker and (then is None or (key.endswith(LISTS) and last.since > at)):
            then = next((version for version in reversed(history) if not version.marker), None)
        if then is None or then.marker or then is last:
            continue
        # What was put back before is another version with the same content.
        written_over = not key.endswith(LISTS) and not (then.etag and then.etag == last.etag)
        if last.marker or written_over:
            found.append(then)
    return found


def vanished(versions: Sequence[Version]) -> float | None:
    """The last moment before somebody deleted pgBackRest's lists, and whatever went just before them.

    pgBackRest itself never deletes them. None when they are there.
    """
    newest = [history[-1] for history in histories(versions).values()]
    gone = sorted((version for version in newest if version.marker), key=lambda version: -version.since)
    lists = [version.since for version in gone if version.key.endswith(LISTS)]
    if not lists:
        return None
    began = min(lists)
    for version in gone:
        if began - AT_ONCE_S <= version.since < began:
            began = version.since
    return began - 1


def part_of(key: str) -> str:
    """What an object belongs to, in words."""
    top, *rest = key.split("/")
    if top != "pgbackrest":
        return f"copies of Redis of {rest[0]}" if top == "redis" and len(rest) > 1 else key
    if key.endswith(LISTS):
        return "the lists of backups and WAL"
    return "WAL" if rest[0] == "archive" else f"backup {rest[2]}" if len(rest) > 3 else key


def failure(program: str, status: int, said: str) -> BackupError:
    """A program's failure as a sentence that names the fix."""
    if program == "pgbackrest" and status == LOCKED:
        return Busy("Another backup is being made: wait for its end (`sudo -u postgres pgbackrest info` shows it).")
    # Up to where pgBackRest quotes a whole answer of the store; what it could not decrypt is no text.
    text = "".join(letter if letter.isprintable() else " " for letter in said.partition("***")[0])
    words = " ".join(text.split())[:300]
    for signs, remedy in REMEDIES:
        if any(sign in said for sign in signs):
            return BackupError(f"{remedy} {program} says: {words}")
    return BackupError(f"{program} failed with status {status}: {words}")


# --- What others are asked


class Host:
    """This data host and whom it asks."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.name = str(config["name"])

    def patroni(self, path: str) -> tuple[int, Any]:
        """Status and answer of the local Patroni. Raises PatroniSilent."""
        context = ssl.create_default_context(cafile=self.config["ca_file"])
        request = urllib.request.Request(self.config["patroni"] + path)  # noqa: S310 - https, by the template
        try:
            with urllib.request.urlopen(request, context=context, timeout=PATRONI_TIMEOUT_S) as answer:  # noqa: S310
                return int(answer.status), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError) as error:
            fix = "start it: `systemctl start patroni`"
            raise PatroniSilent(f"Patroni on {self.name} does not answer ({error}); {fix}.") from error

    def leads(self) -> bool:
        """Whether this host holds the leader's lock. Raises PatroniSilent."""
        return self.patroni("/primary")[0] == 200

    def acts(self) -> bool:
        """Whether this host is the one that makes backups. Raises BackupError."""
        return acting((self.patroni("/cluster")[1] or {}).get("members", [])) == self.name

    def pgbackrest(self, *words: str) -> str:
        """Run pgBackRest as the database's user and return what it printed. Raises BackupError."""
        user = pwd.getpwnam("postgres")
        done = subprocess.run(
            ["pgbackrest", f"--stanza={self.config['stanza']}", *words], cwd="/", env={"PATH": "/usr/bin"},
            user=user.pw_uid, group=user.pw_gid, extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            said = done.stdout + done.stderr
            raise failure("pgbackrest", done.returncode, said[max(said.find("ERROR:"), 0) :])
        return done.stdout

    def info(self) -> dict[str, Any]:
        """What the store has of this database. Raises BackupError when it cannot be read."""
        # Not strict: what it quotes of a file that it cannot decrypt has control characters.
        info: dict[str, Any] = json.loads(self.pgbackrest("info", "--output=json", "--io-timeout=3"), strict=False)[0]
        if info["status"]["code"] in UNREADABLE:
            raise failure("pgbackrest", info["status"]["code"], info["repo"][0]["status"]["message"])
        return info

    def store(self, method: str, key: str, *options: str, query: str = "") -> str:
        """One request to the store, signed by curl, which hears the secret by stdin. Raises BackupError."""
        store = self.config["store"]
        url = f"{store['endpoint'].rstrip('/')}/{store['bucket']}/{urllib.parse.quote(key)}{query}"
        words = ["curl", "--config", "-", "--silent", "--show-error", "--fail-with-body", "--request", method]
        words += ["--aws-sigv4", f"aws:amz:{store['region']}:s3", "--retry", "3", "--retry-connrefused"]
        words += ["--connect-timeout", str(store["timeout_s"]), "--max-time", str(TRANSFER_TIMEOUT_S)]
        words += [*(["--cacert", store["ca_file"]] if store["ca_file"] else []), *options, url]
        secret = f'user = "{store["access_key"]}:{store["secret_key"]}"\n'
        done = subprocess.run(words, input=secret, capture_output=True, text=True, check=False)
        if done.returncode:
            raise failure("curl", done.returncode, done.stderr + done.stdout)
        return done.stdout

    def versions(self) -> list[Version]:
        """Every version of every object, the newest of a key first. Raises BackupError."""
        found: list[Version] = []
        after: dict[str, str] = {}
        while True:
            # In order, as a signature wants them.
            query = urllib.parse.urlencode({**after, "versions": ""}, quote_via=urllib.parse.quote)
            page = ElementTree.fromstring(self.store("GET", "", query=f"?{query}"))  # noqa: S314 - ours
            for item in page:
                kind = item.tag.rpartition("}")[2]
                if kind in ("Version", "DeleteMarker"):
                    key, name, since = (str(item.findtext("{*}" + tag)) for tag in ("Key", "VersionId", "LastModified"))
                    size = int(item.findtext("{*}Size") or 0)
                    etag = str(item.findtext("{*}ETag") or "")
                    found.append(Version(key, name, kind == "DeleteMarker", created(name, since), size, etag))
            if page.findtext("{*}IsTruncated") != "true":
                return found
            after = {
                "key-marker": str(page.findtext("{*}NextKeyMarker")),
                "version-id-marker": str(page.findtext("{*}NextVersionIdMarker")),
            }

    def put_back(self, version: Version) -> None:
        """Make an older version the current one. Raises BackupError."""
        source = f"{self.config['store']['bucket']}/{urllib.parse.quote(version.key)}?versionId={version.version_id}"
        self.store("PUT", version.key, "--header", f"x-amz-copy-source: {source}")

    def redis_copies(self) -> list[Made]:
        """Copies of Redis in the store, the oldest first. Raises BackupError."""
        copies = []
        listed = ElementTree.fromstring(self.store("GET", "", query="?list-type=2&prefix=redis%2F"))  # noqa: S314 - ours
        for item in listed.iterfind("{*}Contents"):
            key, size, ended = (str(item.findtext("{*}" + name)) for name in ("Key", "Size", "LastModified"))
            began = datetime.datetime.strptime(key.rpartition("/")[2], COPY_NAME).replace(tzinfo=datetime.UTC)
            at = datetime.datetime.fromisoformat(ended).timestamp()
            copies.append(Made("redis", key, began.timestamp(), at, int(size)))
        return sorted(copies, key=lambda copy: copy.started)

    def stored(self) -> list[Made]:
        """Everything that the store has. Raises BackupError."""
        return whole_backups(self.info()) + self.redis_copies()

    def redis(self, address: str, *words: str) -> str:
        """Ask one Redis. Raises BackupError."""
        redis = self.config["redis"]
        command = ["redis-cli", "-h", address, "-p", str(redis["port"]), "--tls", "--cacert", self.config["ca_file"]]
        return run(
            [*command, "--user", redis["user"], "-e", *words],
            f"Redis at {address} refuses",
            environment={"REDISCLI_AUTH": redis["password"]},
            timeout_s=TRANSFER_TIMEOUT_S,
        )

    def redis_source(self) -> Mapping[str, str]:
        """The Redis to copy: the first replica in sync by name, or the leader if there is none. Raises BackupError."""
        leaders, refusals = [], []
        for member in sorted(self.config["members"], key=lambda one: str(one["name"])):
            try:
                role = self.redis(member["address"], "ROLE").split()
            except BackupError as error:
                refusals.append(str(error))
                continue
            if role[0] == "slave" and "connected" in role:
                return dict(member)
            if role[0] == "master":
                leaders.append(member)
        if not leaders:
            raise BackupError("; ".join(refusals) or "No Redis leads: look at `systemctl status redis-sentinel`.")
        return dict(leaders[0])


# --- What is done


def make(host: Host, kind: str) -> None:
    """Make a backup. Raises BackupError."""
    began = time.monotonic()
    said = copy_redis(host) if kind == "redis" else host.pgbackrest(f"--type={POSTGRES[kind]}", "backup")
    print(f"{said}{kind}: done in {time.monotonic() - began:.1f} s")


def copy_redis(host: Host) -> str:
    """Copy Redis: check the copy, encrypt it, send it, let the oldest ones go. Raises BackupError."""
    source = host.redis_source()
    name = datetime.datetime.now(datetime.UTC).strftime(COPY_NAME)
    with scratch() as folder:
        plain, sealed = Path(folder) / "plain", Path(folder) / "sealed"
        host.redis(source["address"], "--rdb", str(plain))
        run(["redis-check-rdb", str(plain)], f"The copy of Redis on {source['name']} is damaged")
        crypt(host, plain, sealed)
        plain.unlink()
        with sealed.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").digest()  # what the store compares with what arrives
        md5 = f"Content-MD5: {base64.b64encode(digest).decode()}"
        host.store("PUT", f"redis/{source['name']}/{name}", "--upload-file", str(sealed), "--header", md5)
    for old in host.redis_copies()[: -host.config["redis"]["keep"]]:
        host.store("DELETE", old.name)
    return ""


def fetch_redis(host: Host, target: Path) -> None:
    """Write the newest copy of Redis to a file that is not there yet. Raises BackupError."""
    if target.exists():
        raise BackupError(f"{target} exists: name a file that is not there.")
    last = newest(host.redis_copies(), "redis")
    if last is None:
        raise BackupError("The store has no copy of Redis: make one with `arches-backup redis`.")
    with scratch() as folder:
        sealed, plain = Path(folder) / "sealed", Path(folder) / "plain"
        host.store("GET", last.name, "--output", str(sealed))
        crypt(host, sealed, plain, "-d")
        run(["redis-check-rdb", str(plain)], f"{last.name} is damaged")
        shutil.move(plain, target)
    print(f"{target} is {last.name}")


def crypt(host: Host, source: Path, target: Path, *options: str) -> None:
    """Encrypt a file, or decrypt it with `-d`; openssl hears the passphrase by stdin. Raises BackupError."""
    command = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-pass", "stdin", *options]
    run([*command, "-in", str(source), "-out", str(target)], "openssl refuses", host.config["passphrase"] + "\n")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what must not stay; nobody else can read it."""
    SCRATCH.mkdir(mode=0o700, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=SCRATCH)


def make_due(host: Host) -> None:
    """Make what is due, if this host makes backups, and tell monitoring. Raises BackupError for all that failed."""
    if not host.acts():
        return
    made, failures = host.stored(), []
    for kind in due(made, host.config["schedule"], time.time()):
        print(f"{kind}: is due", flush=True)
        try:
            make(host, kind)
        except Busy as error:
            print(error)
        except BackupError as error:
            failures.append(f"{kind}: {error}")
        made = host.stored()
    publish(made)
    if failures:
        raise BackupError(" ".join(failures))


def publish(made: Sequence[Made]) -> None:
    """Tell monitoring what the store has, whichever host made it."""
    lines = []
    for last in filter(None, (newest(made, kind) for kind in KINDS)):
        label = '{type="' + last.kind + '"}'
        lines += [
            f"arches_backup_last_success_timestamp_seconds{label} {last.ended:.0f}",
            f"arches_backup_duration_seconds{label} {last.ended - last.started:.0f}",
            f"arches_backup_size_bytes{label} {last.size}",
        ]
    write_metrics("backup", lines)


def write_metrics(name: str, lines: Sequence[str]) -> None:
    """Replace a text file of the node exporter. Where that is not installed nobody would read it."""
    if METRICS.is_dir():
        fresh = METRICS / f"{name}.prom.new"
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.chmod(0o644)
        fresh.replace(METRICS / f"{name}.prom")


def sing(host: Host) -> None:
    """Write the canary rows, if this host leads. Raises BackupError."""
    if host.leads():
        sql(CANARY, host=host.name)
        write_metrics("canary", [f"arches_canary_last_success_timestamp_seconds {time.time():.0f}"])


def prepare(host: Host, check: bool) -> None:
    """Try the schedule and, if this host leads, make the store ready. Prints what changes. Raises BackupError."""
    for calendar in host.config["schedule"].values():
        next_time(calendar, time.time())
    if not host.leads():
        return
    system_id, version = sql("SELECT system_identifier FROM pg_control_system()", "SHOW server_version_num")
    if command := wanting(host.info(), int(system_id), version[:-4]):
        if not check:
            host.pgbackrest(command)
        print(command)


def show_deleted(host: Host, at: float | None) -> None:
    """Print what was deleted, and what was there at a moment and can come back. Raises BackupError."""
    versions = host.versions()
    at = vanished(versions) if at is None else at
    back = hidden(versions, at) if at else []
    parts: dict[str, dict[str, Any]] = {}
    for marker in sorted((one for one in versions if one.marker), key=lambda one: one.since):
        first = {"first": moment(marker.since), "objects": 0}
        part = parts.setdefault(part_of(marker.key), first)
        part.update(last=moment(marker.since), objects=part["objects"] + 1)
    told = {"at": moment(at) if at else "", "objects": len(back), "bytes": sum(one.size for one in back)}
    print(json.dumps({**told, "back": sorted({part_of(one.key) for one in back}), "deleted": parts}))


def bring_back(host: Host, at: float) -> None:
    """Put back what was there at a moment, WAL and backups before the lists that name them. Raises BackupError."""
    back = hidden(host.versions(), at)
    for lists in (False, True):
        with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(host.put_back, [one for one in back if one.key.endswith(LISTS) == lists]))
    print(f"{len(back)} objects are back as they were at {moment(at)}")


def moment(at: float) -> str:
    """A moment as people write it, UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


def when(text: str) -> float:
    """A moment in seconds since 1970; for argparse, which says what is wrong with it."""
    read = datetime.datetime.fromisoformat(text)
    if read.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} names no time zone: write it like 2026-01-01T10:00:00Z")
    return read.timestamp()


# --- Other programs


def run(
    command: Sequence[str], otherwise: str, given: str = "", *,
    environment: Mapping[str, str] | None = None, timeout_s: float = ANSWER_TIMEOUT_S,
) -> str:  # fmt: skip
    """Run a program and return what it printed. Raises BackupError that begins with `otherwise`."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BackupError(f"{otherwise}: no answer within {timeout_s} s.") from None
    if done.returncode:
        raise BackupError(f"{otherwise}: {' '.join((done.stderr.strip() or done.stdout).split())[:300]}")
    return done.stdout


def sql(*statements: str, **variables: str) -> list[str]:
    """Lines that the local database answers to its superuser. Raises BackupError."""
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "arches"]
    command += [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    fix = "is a synchronous standby missing? Look at `patronictl list`"
    return run(command, f"Postgres does not do what is asked ({fix})", ";\n".join(statements)).splitlines()


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["due", *KINDS, "redis-fetch", "canary", "prepare", "deleted", "bring-back"])
    parser.add_argument("file", nargs="?", type=Path, help="what redis-fetch writes")
    parser.add_argument("--check", action="store_true", help="prepare: change nothing")
    parser.add_argument("--at", type=when, help="deleted, bring-back: a moment such as 2026-01-01T10:00:00Z")
    given = parser.parse_args(arguments)
    if (given.verb == "bring-back" and given.at is None) or (given.at and given.verb not in ("deleted", "bring-back")):
        parser.error("bring-back takes --at, a moment before the deletion; `deleted` may")
    if (given.verb == "redis-fetch") != (given.file is not None):
        parser.error("redis-fetch, and nothing else, takes a file")
    try:
        act(Host(json.loads(CONFIG.read_text())), given)
    except BackupError as error:
        print(error, file=sys.stderr)
        return BUSY if isinstance(error, Busy) else int(not quiet(error, given.verb))
    return 0


def quiet(error: BackupError, verb: str) -> bool:
    """Whether a timer leaves it to the next time: a host whose Patroni is away neither leads nor makes backups.

    That nobody leads has an alert of its own, and so have backups that are too old.
    """
    return isinstance(error, PatroniSilent | Leaderless) and verb in ("due", "canary")


def act(host: Host, given: argparse.Namespace) -> None:
    """Do what was asked. Raises BackupError."""
    if given.verb == "due":
        make_due(host)
    elif given.verb == "canary":
        sing(host)
    elif given.verb == "prepare":
        prepare(host, given.check)
    elif given.verb == "deleted":
        show_deleted(host, given.at)
    elif given.verb == "bring-back":
        bring_back(host, given.at)
    elif given.verb == "redis-fetch":
        fetch_redis(host, given.file)
    else:
        make(host, given.verb)
        publish(host.stored())


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
