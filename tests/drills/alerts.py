"""How each alert is caused on a fleet of local machines, and how that is undone. Every undo may be done twice.

An entry of DRILLS is one alert. What a rule asks for that no drill may do here (hours, the clock, the memory, a full
disk) is met by a copy of the rule with other numbers (``lowered``) or by a series that the drill writes (``injected``):
docs/runbooks/README.md says which.
"""

import shlex

from lib.drill import ALONE, RULE_FILE, Act, Drill, Lowered, monitoring_host, nothing, remove_series, write_series
from lib.etcd import etcd
from lib.fleet import Fleet
from lib.leaders import leader
from lib.postgres import sql
from lib.redis import redis
from lib.waiting import wait_for
from lib.webhook import REFUSED

# Any value is low enough, or high enough.
BELOW = {"<": "< 1e18"}
ABOVE = {">": "> -1e18"}
PSQL = "psql -qAtX -v ON_ERROR_STOP=1 -U postgres arches -c "
ARCHIVE_COMMAND = "/run/drill-archive-command"
ETCD_KEY = "/drill/differs"
ETCD_FILE = "/var/lib/etcd/arches/member/snap/db"
COMPARE = "systemctl start arches-etcd-compare"
TEXTFILES = "/var/lib/prometheus/node-exporter"


def each(*acts: Act) -> Act:
    """One act after the other."""

    def act(fleet: Fleet) -> None:
        for one in acts:
            one(fleet)

    return act


def on(host: str, command: str) -> Act:
    """A command as root on a host."""

    def act(fleet: Fleet) -> None:
        fleet.ssh(host, command)

    return act


def on_group(group: str, command: str) -> Act:
    """A command as root on every host of a group."""

    def act(fleet: Fleet) -> None:
        for host in fleet.groups[group]:
            fleet.ssh(host, command)

    return act


def machines(state: str, host: str) -> Act:
    """A machine into a state."""

    def act(fleet: Fleet) -> None:
        fleet.machines(state, host)

    return act


def on_followers(what: str, command: str, count: int = 2) -> Act:
    """A command on data hosts that do not lead."""

    def act(fleet: Fleet) -> None:
        first = leader(fleet, what)
        for host in [host for host in fleet.groups["data"] if host != first][:count]:
            fleet.ssh(host, command)

    return act


def on_leader(what: str, command: str) -> Act:
    """A command on the data host that leads."""

    def act(fleet: Fleet) -> None:
        fleet.ssh(leader(fleet, what), command)

    return act


def inject(host: str, metric: str, value: float) -> Act:
    """A series in a host's textfile."""

    def act(fleet: Fleet) -> None:
        write_series(fleet, host, metric, value)

    return act


def take_back(host: str, metric: str) -> Act:
    """The series is gone again."""

    def act(fleet: Fleet) -> None:
        remove_series(fleet, host, metric)

    return act


def cut(host: str, service: str) -> Act:
    """A host reaches a service of the map nowhere any more."""

    def act(fleet: Fleet) -> None:
        chain = "add chain inet drill out { type filter hook output priority 0; policy accept; }"
        port = fleet.services[service]["port"]
        rules = (
            f"destroy table inet drill\nadd table inet drill\n{chain}\nadd rule inet drill out tcp dport {port} drop\n"
        )
        fleet.ssh(host, "nft -f -", stdin=rules)

    return act


def heal(host: str) -> Act:
    """A host reaches everything again."""
    return on(host, "nft destroy table inet drill")


def in_background(name: str, command: str) -> str:
    """A command line that runs another in a unit ``drill-<name>`` of its own."""
    unit = f"--quiet --collect --expand-environment=no --unit=drill-{name}"
    return f"systemctl stop drill-{name}; systemd-run {unit} sh -c {shlex.quote(command)}"


def ended(name: str) -> str:
    """A command line that ends such a unit; none is fine."""
    return f"if systemctl is-active --quiet drill-{name}; then systemctl stop drill-{name}; fi"


def let_member_differ(fleet: Fleet) -> None:
    """A member that does not lead has, in its file, another value for a key than the two others."""
    first = leader(fleet, "etcd")
    host = next(host for host in fleet.groups["data"] if host != first)
    etcd(fleet, first, f"etcdctl put {ETCD_KEY} {'same' * 8}")
    wait_for(
        "the member has written the value to its file",
        lambda: fleet.ssh(host, f"grep -q {'same' * 8} {ETCD_FILE}", check=False).returncode == 0,
        timeout_s=30,
    )
    change = f"LC_ALL=C sed -i 's/{'same' * 8}/{'else' * 8}/g' {ETCD_FILE}"
    fleet.ssh(host, f"systemctl stop etcd && {change} && systemctl start etcd")
    fleet.ssh(host, COMPARE)


def let_members_agree(fleet: Fleet) -> None:
    """The playbook of the runbook, where there is something to do."""
    if fleet.status()[1]["etcd"]["differing"]:
        fleet.playbook("ansible/recover/etcd-member-replace.yml", "-e", "confirm=local")
    etcd(fleet, leader(fleet, "etcd"), f"etcdctl del {ETCD_KEY}")
    on_group("data", COMPARE)(fleet)


def stop_archiving(fleet: Fleet) -> None:
    """The archive command fails, and there is something to archive."""
    first = leader(fleet, "postgres")
    fleet.ssh(first, f"{PSQL} 'SHOW archive_command' > {ARCHIVE_COMMAND}")
    fleet.ssh(first, "patronictl edit-config --force --set postgresql.parameters.archive_command=/bin/false")
    wait_for(
        "Postgres has taken the archive command over",
        lambda: fleet.ssh(first, f"{PSQL} 'SHOW archive_command'").stdout.strip() == "/bin/false",
        timeout_s=30,
    )
    fleet.ssh(first, f"{PSQL} \"SELECT pg_logical_emit_message(true, 'drill', 'drill')\" -c 'SELECT pg_switch_wal()'")


def damage_page(fleet: Fleet) -> None:
    """A page of a table of its own is overwritten on the leader's disk, and read."""
    sql(
        fleet,
        "CREATE EXTENSION IF NOT EXISTS pg_buffercache",
        "DROP TABLE IF EXISTS drill_page",
        "CREATE TABLE drill_page AS SELECT generate_series(1, 1000) AS id",
        "CHECKPOINT",
        # From now on it is on the disk alone.
        "SELECT pg_buffercache_evict(bufferid) FROM pg_buffercache"
        " WHERE relfilenode = pg_relation_filenode('drill_page')",
    )
    file = sql(fleet, "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('drill_page')")
    first = leader(fleet, "postgres")
    fleet.ssh(first, f"dd if=/dev/urandom of={file} bs=8192 seek=1 count=1 conv=notrunc status=none")
    read = fleet.ssh(first, f"{PSQL} 'SELECT count(*) FROM drill_page'", check=False)
    assert "invalid page in block 1" in read.stderr, read


def archive_again(fleet: Fleet) -> None:
    """The archive command is the one from before."""
    command = f'patronictl edit-config --force --set postgresql.parameters.archive_command="$(cat {ARCHIVE_COMMAND})"'
    for host in fleet.groups["data"]:
        fleet.ssh(host, f"if test -s {ARCHIVE_COMMAND}; then {command} && rm {ARCHIVE_COMMAND}; fi")


def redis_saves(may: bool) -> Act:
    """Redis on one host can, or cannot, write its file; it is asked to."""

    def act(fleet: Fleet) -> None:
        host = fleet.groups["data"][-1]
        fleet.ssh(host, f"chmod {'0750' if may else '0500'} /var/lib/redis")
        redis(fleet, host, "BGSAVE")

    return act


# Holds every server connection of a pool, and has others wait for one. They begin one after the other: a pool refuses
# whoever has waited for five seconds, and somebody must be waiting at any moment.
POOL_CLIENTS = """
export PGPASSWORD=$(awk -F'"' '$2 == "app" { print $4 }' /etc/pgbouncer/userlist.txt)
hold='BEGIN; SET LOCAL statement_timeout = 0; SELECT pg_sleep(600); COMMIT'
client() {
  sleep $(($1 / 8))
  while :; do psql -qX -h /run/postgresql -p 6432 -U app arches -c "$hold" || sleep 0.2; done
}
for n in $(seq 40); do client $n & done
wait
"""
# Lines that Loki refuses: they are a month old.
OLD_LINES = """
import json, ssl, time, urllib.request
tls = ssl.create_default_context(cafile="/etc/arches/tls/ca.crt")
tls.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
while True:
    lines = [[str((int(time.time()) - 31 * 86400) * 10**9), "a line of a drill"]]
    body = json.dumps({"streams": [{"stream": {"host": "drill", "unit": "drill"}, "values": lines}]}).encode()
    request = urllib.request.Request("https://ADDRESS/loki/api/v1/push", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, context=tls, timeout=5).close()
    except OSError:
        pass
    time.sleep(2)
"""


def push_old_lines(fleet: Fleet) -> None:
    """Loki is sent lines that are too old, until told otherwise."""
    host = monitoring_host(fleet)
    script = OLD_LINES.replace("ADDRESS", f"{fleet.address(host)}:{fleet.services['loki']['port']}")
    fleet.ssh(host, in_background("old-lines", f"exec python3 -c {shlex.quote(script)}"))


def break_rules(fleet: Fleet) -> None:
    """Prometheus is given a file that it cannot read."""
    fleet.ssh(monitoring_host(fleet), f"echo 'groups: broken' > {RULE_FILE}; systemctl reload prometheus", check=False)


def mend_rules(fleet: Fleet) -> None:
    """The file is gone."""
    fleet.ssh(monitoring_host(fleet), f"rm -f {RULE_FILE}; systemctl reload prometheus")


# The prover reads the store with another passphrase.
PROVER_DROP_IN = "/run/systemd/system/arches-prover.service.d"
MISUSE_PROVER = f"""
mkdir -p {PROVER_DROP_IN}
printf '[Service]\\nEnvironment=PGBACKREST_REPO1_CIPHER_PASS=drill\\n' > {PROVER_DROP_IN}/drill.conf
systemctl daemon-reload
systemctl start --no-block arches-prover
"""


def backup_is_made(fleet: Fleet) -> None:
    """A backup of each kind, which a new fleet makes within five minutes, is known to Prometheus' hosts."""
    kinds = f"cat {TEXTFILES}/backup.prom | grep -o 'last_success_timestamp_seconds{{type=.[a-z]*'"
    wanted = {"full", "redis"}

    def made() -> bool:
        told = "".join(fleet.ssh(host, kinds, check=False).stdout for host in fleet.groups["data"])
        return all(kind in told for kind in wanted)

    wait_for("backups are made", made, timeout_s=600, interval_s=5)


def restore_is_proven(fleet: Fleet) -> None:
    """A restore is proven now."""
    fleet.ssh("ops1", "systemctl start arches-prover", timeout_s=600)


DRILLS: dict[str, Drill] = {
    # What `make test` causes comes first, so that it shares one wave.
    "EdgeDown": Drill(
        on("edge1", "systemctl stop nginx"), on("edge1", "systemctl start nginx"), uses=frozenset({"edge1"})
    ),
    "TargetDown": Drill(
        on("api3", "systemctl stop prometheus-pgbouncer-exporter"),
        on("api3", "systemctl start prometheus-pgbouncer-exporter"),
        uses=frozenset({"api3"}),
        labels={"host": "api3", "job": "pgbouncer_exporter"},
    ),
    "UnitFailed": Drill(
        on("api1", "systemctl reset-failed 'drill-*'; systemd-run --quiet --unit=drill-failed /bin/false"),
        on("api1", "systemctl reset-failed 'drill-*'"),
        labels={"host": "api1", "name": "drill-failed.service"},
    ),
    "PostgresHasNoSyncStandby": Drill(
        on_followers("postgres", "systemctl stop patroni"),
        on_group("data", "systemctl start patroni"),
        uses=frozenset({"postgres"}),
    ),
    "PoolHasNoServer": Drill(cut("api2", "patroni"), heal("api2"), uses=frozenset({"api2"}), labels={"host": "api2"}),
    "ConfigurationDrifted": Drill(
        inject("edge1", "arches_drift_changes", 1),
        take_back("edge1", "arches_drift_changes"),
        labels={"host": "edge1"},
        injected=True,
    ),
    # Edge and hosts.
    "CertificateExpiresSoon": Drill(nothing, nothing, lowered=Lowered(BELOW, always=True)),
    "HostDown": Drill(
        machines("killed", "api3"), machines("present", "api3"), uses=frozenset({"api3"}), labels={"host": "api3"}
    ),
    "DiskWillFill": Drill(nothing, nothing, lowered=Lowered(BELOW, always=True)),
    "DiskAlmostFull": Drill(nothing, nothing, lowered=Lowered(BELOW, always=True)),
    "MemoryLow": Drill(nothing, nothing, lowered=Lowered(BELOW, always=True)),
    # Postgres and the way to it.
    "PostgresHasNoLeader": Drill(
        each(on_followers("postgres", "systemctl stop patroni"), on_leader("postgres", "systemctl stop patroni")),
        on_group("data", "systemctl start patroni"),
        uses=frozenset({"postgres", "api1", "api2", "api3"}),
    ),
    "PostgresReplicationLags": Drill(
        nothing, nothing, uses=frozenset({"postgres"}), lowered=Lowered(ABOVE, always=True)
    ),
    "PostgresConnectionsNearLimit": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "PostgresTransactionTooLong": Drill(
        on_leader("postgres", in_background("transaction", f"exec {PSQL} 'SELECT pg_sleep(600)'")),
        on_group("data", ended("transaction")),
        uses=frozenset({"postgres"}),
        lowered=Lowered({">": "> 20"}),
        begins_s=20,
    ),
    "PostgresWraparoundNear": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "PostgresPageDamaged": Drill(
        damage_page,
        on_leader("postgres", f"{PSQL} 'DROP TABLE IF EXISTS drill_page' -c 'DROP EXTENSION IF EXISTS pg_buffercache'"),
        uses=frozenset({"postgres"}),
        lowered=Lowered(window="1m"),
        begins_s=20,
        resolves_s=150,
    ),
    "PostgresDeadTuplesPileUp": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "WalArchivingFails": Drill(
        stop_archiving,
        archive_again,
        uses=frozenset({"postgres"}),
        lowered=Lowered(window="1m"),
        begins_s=20,
        resolves_s=150,
    ),
    "WalArchiveTooOld": Drill(
        stop_archiving,
        archive_again,
        uses=frozenset({"postgres"}),
        lowered=Lowered({">": "> 100"}),
        begins_s=120,
    ),
    "PoolClientsWait": Drill(
        on("api1", in_background("clients", POOL_CLIENTS)),
        on("api1", ended("clients")),
        uses=frozenset({"api1", "postgres"}),
        labels={"host": "api1"},
    ),
    # Backups.
    "RestoreProofFailed": Drill(
        on("ops1", MISUSE_PROVER),
        on("ops1", f"rm -rf {PROVER_DROP_IN}; systemctl daemon-reload; systemctl start --no-block arches-prover"),
        uses=frozenset({"prover"}),
        labels={"host": "ops1"},
        needs=backup_is_made,
        begins_s=30,
        # The proof that ends it takes its time.
        resolves_s=300,
    ),
    "RestoreProofTooOld": Drill(
        nothing,
        nothing,
        uses=frozenset({"prover"}),
        lowered=Lowered(ABOVE, always=True),
        needs=each(backup_is_made, restore_is_proven),
    ),
    "BackupTooOld": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True), needs=backup_is_made),
    "RedisCopyTooOld": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True), needs=backup_is_made),
    "CanaryStale": Drill(
        on_group("data", "systemctl stop arches-canary.timer"),
        on_group("data", "systemctl start arches-canary.timer arches-canary.service"),
        uses=frozenset({"canary"}),
        lowered=Lowered({">": "> 90"}),
        begins_s=100,
    ),
    "BackupsSilent": Drill(
        on_group("data", f"systemctl stop arches-canary.timer; rm -f {TEXTFILES}/canary.prom"),
        on_group("data", "systemctl start arches-canary.timer arches-canary.service"),
        uses=frozenset({"canary"}),
        lowered=Lowered(),
        labels={"what": "canaries"},
        begins_s=30,
    ),
    "S3PruneTooOld": Drill(
        nothing, nothing, lowered=Lowered(ABOVE, always=True), needs=on("ops1", "systemctl start arches-s3-prune")
    ),
    # No age is as large as that of a bundle that is opened in 2096 is small: also where one was opened already.
    "EscrowTooOld": Drill(
        inject("edge1", "arches_escrow_last_success_timestamp_seconds", 4e9),
        take_back("edge1", "arches_escrow_last_success_timestamp_seconds"),
        lowered=Lowered({">": "< -1e9"}),
        injected=True,
    ),
    # Redis and etcd.
    "RedisHasNoLeader": Drill(
        on_group("data", "systemctl stop redis-server"),
        on_group("data", "systemctl start redis-server"),
        uses=frozenset({"redis"}),
    ),
    "RedisHasNoReplica": Drill(
        on_followers("redis", "systemctl stop redis-server"),
        on_group("data", "systemctl start redis-server"),
        uses=frozenset({"redis"}),
    ),
    "RedisPersistenceFails": Drill(
        redis_saves(may=False), redis_saves(may=True), uses=frozenset({"redis"}), labels={"host": "data3"}
    ),
    "RedisMemoryNearLimit": Drill(nothing, nothing, uses=frozenset({"redis"}), lowered=Lowered(ABOVE, always=True)),
    "SentinelQuorumLost": Drill(
        on_followers("redis", "systemctl stop redis-sentinel"),
        on_group("data", "systemctl start redis-sentinel"),
        uses=frozenset({"redis"}),
    ),
    "EtcdHasNoLeader": Drill(
        on_followers("etcd", "systemctl stop etcd"),
        on_group("data", "systemctl start etcd"),
        uses=frozenset({"etcd", "postgres"}),
    ),
    "EtcdMemberDown": Drill(
        on_followers("etcd", "systemctl stop etcd", count=1),
        on_group("data", "systemctl start etcd"),
        uses=frozenset({"etcd"}),
    ),
    "EtcdMemberDiffers": Drill(let_member_differ, let_members_agree, uses=frozenset({ALONE})),
    "EtcdFsyncSlow": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "EtcdDatabaseLarge": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    # Logs.
    "CollectorDropsData": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "CollectorQueueFills": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "LokiRefusesLogs": Drill(
        push_old_lines,
        on("ops1", ended("old-lines")),
        lowered=Lowered(window="1m"),
        begins_s=30,
        resolves_s=150,
    ),
    "LokiDoesNotFlush": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "LogsDoNotArrive": Drill(
        cut("data3", "loki"),
        heal("data3"),
        uses=frozenset({"logs"}),
        labels={"host": "data3"},
        lowered=Lowered(window="1m"),
        begins_s=70,
    ),
    # Monitoring itself.
    # A heartbeat only falls silent: nobody is told that it ended.
    "Watchdog": Drill(nothing, nothing, lowered=Lowered(for_s=0, always=True), resolves_s=0),
    "PrometheusReloadFailed": Drill(break_rules, mend_rules, uses=frozenset({ALONE})),
    "NotificationsFail": Drill(
        nothing,
        nothing,
        lowered=Lowered(window="1m"),
        extra=({"alert": REFUSED, "expr": "vector(1)", "labels": {"severity": "page", "subject": "drill"}},),
        begins_s=60,
        resolves_s=180,
    ),
    "RulesFail": Drill(
        nothing,
        nothing,
        lowered=Lowered(window="1m"),
        extra=({"record": "drill:fails", "expr": "up * on () up"},),
        begins_s=30,
        resolves_s=150,
    ),
    # The API.
    "ReleasesDiffer": Drill(nothing, nothing, lowered=Lowered({">": "> 0"}, always=True)),
    "EmbeddingBacklogGrows": Drill(nothing, nothing, lowered=Lowered(ABOVE, always=True)),
    "ApiInstanceDown": Drill(
        # Not the first, which the socket wakes again.
        on("api1", "systemctl stop api@2"),
        on("api1", "systemctl start api.target"),
        uses=frozenset({"api1"}),
        labels={"instance": "api1:2"},
    ),
}

# What `make test` causes: short, and all in one wave.
CORE = tuple(list(DRILLS)[:6])

# Alerts that no drill can cause, and why.
WITHOUT_DRILL: dict[str, str] = {
    "ClockOff": "a local machine may not ask for the clock, so that its metrics are absent; promtool proves it",
    "ApiErrorBudgetBurnsFast": "its windows are an hour and five minutes of real traffic; promtool proves them",
    "ApiErrorBudgetBurnsSlowly": "its windows are hours of real traffic; promtool proves them",
    "ApiLatencyBudgetBurnsFast": "its windows are an hour and five minutes of real traffic; promtool proves them",
    "ApiLatencyBudgetBurnsSlowly": "its windows are hours of real traffic; promtool proves them",
}


def chosen(alerts: str) -> dict[str, Drill]:
    """The drills of ``ALERTS``: nothing for the core, ``all``, or names with spaces between.

    :raises KeyError: when a name has no drill.
    """
    names = list(DRILLS) if alerts == "all" else alerts.split() or list(CORE)
    if missing := [name for name in names if name not in DRILLS]:
        raise KeyError(f"no drill of {', '.join(missing)}; see DRILLS in tests/drills/alerts.py")
    return {name: DRILLS[name] for name in names}
