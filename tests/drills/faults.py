"""What can fail, and how a drill makes it fail on local machines: for each fault how it is done and undone.

A machine's processes, network and power are its own; page cache is this computer's, so what was written before a
machine is killed is there when it boots again. A disk that lies about fsync cannot be drilled here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lib.fleet import Fleet
from lib.leaders import leader
from lib.waiting import wait_for

Undo = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """One fault and what it may cost.

    :param do: makes it so and returns what undoes it.
    :param gap_s: longest time without an acknowledged write.
    :param failures: requests that may fail in the sense of drills/rollout/judge.py.
    :param lasts_s: how long it lasts at least, in seconds.
    :param prepare: what must be so before, without anybody at work; returns what undoes it.
    """

    do: Callable[[Fleet], Undo]
    gap_s: float
    failures: int
    lasts_s: float = 15
    prepare: Callable[[Fleet], Undo] = lambda _: lambda: None


def on(where: Callable[[Fleet], list[str]], do: str, undo: str = "true") -> Callable[[Fleet], Undo]:
    """Commands on hosts."""

    def make(fleet: Fleet) -> Undo:
        hosts = where(fleet)

        def back() -> None:
            for host in hosts:
                fleet.ssh(host, undo)

        for host in hosts:
            fleet.ssh(host, do)
        return back

    return make


def machine(state: str, *more: str, of: str = "postgres") -> Callable[[Fleet], Undo]:
    """A machine of whoever leads is killed or cut off."""

    def make(fleet: Fleet) -> Undo:
        host = leader(fleet, of)
        fleet.playbook("ansible/machines.yml", "-e", f"state={state}", *more, "--limit", host)
        return lambda: fleet.machines("present" if state == "killed" else "healed", host)

    return make


def power(fleet: Fleet) -> Undo:
    """Every machine is off at once, and on again."""
    fleet.machines("killed")
    fleet.machines("present")
    return lambda: None


def store_away(fleet: Fleet) -> Undo:
    """The object store stops; a backup that was due meanwhile has failed, and is made up for."""
    back = on(first("ops"), "systemctl stop arches-versitygw", "systemctl start arches-versitygw")(fleet)
    due = "if systemctl --quiet is-failed arches-backup@due; then systemctl start arches-backup@due; fi"

    def undo() -> None:
        back()
        for host in fleet.groups["data"]:
            fleet.ssh(host, due, timeout_s=300)

    return undo


DATA = "/var/lib/postgresql/17/arches"
WAL = f"{DATA}/pg_wal"
BALLAST = f"{WAL}/ballast"
# Where Patroni leaves a data directory that it could not rewind, nor remove: something is mounted in it.
FAILED = f"{DATA}.failed"


def wal_on_a_small_disk(fleet: Fleet) -> Undo:
    """A member whose WAL has a disk of its own leads."""
    host = next(host for host in fleet.groups["data"] if host != leader(fleet))

    def moved(change: str) -> None:
        fleet.ssh(host, f"systemctl stop patroni && {change} && systemctl start patroni", timeout_s=120)
        wait_for("it follows again", fleet.healthy, timeout_s=120, interval_s=1)

    aside = f"{WAL}.aside"
    owner = "$(id -u postgres),gid=$(id -g postgres)"
    moved(
        f"mv {WAL} {aside} && install -d -o postgres -g postgres -m 700 {WAL} && "
        f"mount -t tmpfs -o size=$(($(du -sm {aside} | cut -f1) + 128))m,mode=0700,uid={owner} drill {WAL} && "
        f"cp -a {aside}/. {WAL} && rm -r {aside}"
    )
    fleet.playbook("ansible/recover/postgres-switchover.yml", "-e", f"candidate={host}", "-e", "confirm=local")
    return lambda: moved(
        f"if mountpoint -q {WAL}; then cp -a {WAL} {aside} && umount {WAL} && rmdir {WAL} && mv {aside} {WAL}; "
        f"else umount {FAILED}/pg_wal && rm -r {FAILED}; fi"
    )


def fill_wal(fleet: Fleet) -> Undo:
    """Nothing is left on that disk, and WAL goes on until its next file is missing."""
    host = leader(fleet)
    written = "SELECT pg_logical_emit_message(true, 'drill', 'x'); SELECT pg_switch_wal();"
    fill = f"dd if=/dev/zero of={BALLAST} bs=1M status=none; psql -qAtX -v ON_ERROR_STOP=1 -U postgres arches"
    assert fleet.ssh(host, fill, stdin=written * 64, check=False).returncode, "there was room for 64 files of WAL"
    # A member that found no room to rewind was copied anew meanwhile, and has none.
    return lambda: fleet.ssh(host, f"rm -f {BALLAST}")


def postgres(fleet: Fleet) -> list[str]:
    return [leader(fleet)]


def redis(fleet: Fleet) -> list[str]:
    return [leader(fleet, "redis")]


def etcd(fleet: Fleet) -> list[str]:
    return [leader(fleet, "etcd")]


def etcd_majority(fleet: Fleet) -> list[str]:
    """Two members, and not those whose host leads Postgres: that is another fault."""
    return [host for host in fleet.groups["data"] if host != leader(fleet)]


def group(name: str) -> Callable[[Fleet], list[str]]:
    return lambda fleet: fleet.groups[name]


def first(name: str) -> Callable[[Fleet], list[str]]:
    return lambda fleet: fleet.groups[name][:1]


POSTMASTER = f"kill -%s $(head -1 {DATA}/postmaster.pid)"
SILENT = "nft -f - <<< 'table inet drill { chain %s { type filter hook %s priority -200; tcp %s { %s } drop; }; }'"
CUT = "nft delete table inet drill"


def drop(chain: str, ports: str, what: str = "dport") -> str:
    """Packets are dropped and nobody is told."""
    return f'bash -c "{SILENT % (chain, chain, what, ports)}"'


GUARD, WATCHER = "arches-pool-guard", "arches-lease-watcher"


def of_unit(unit: str, members: str = "") -> str:
    """Patroni's answers, of these members or all, are out of reach for whoever a unit runs as."""
    user = f"meta skuid $(stat -c %u /proc/$(systemctl show -P MainPID {unit}))"
    whom = f"ip daddr {{ {members} }} " if members else ""
    chain = f"chain output {{ type filter hook output priority -200; {user} {whom}tcp dport 8008 drop; }}"
    return f'bash -c "nft -f - <<< \\"table inet drill {{ {chain}; }}\\""'


def wrong_guard(fleet: Fleet) -> Undo:
    """One guard hears everybody but the leader, who is well."""
    return on(first("api"), of_unit(GUARD, fleet.address(leader(fleet))), CUT)(fleet)


FAULTS = {
    "postmaster-killed": Fault(on(postgres, POSTMASTER % "KILL"), gap_s=8, failures=60),
    "leader-frozen": Fault(
        on(postgres, "systemctl kill --signal=STOP patroni", "systemctl kill --signal=CONT patroni"),
        gap_s=15, failures=60, lasts_s=30,
    ),
    "host-lost": Fault(machine("killed"), gap_s=15, failures=60, lasts_s=30),
    "host-cut-off": Fault(machine("partitioned"), gap_s=15, failures=60, lasts_s=30),
    "host-cut-off-from-peers": Fault(
        machine("partitioned", "-e", "peers_only=true"), gap_s=25, failures=60, lasts_s=30,
    ),
    # It hears the others and they do not hear it.
    "host-mute": Fault(
        on(postgres, drop("output", "5432, 8008, 2379, 2380", "sport"), CUT), gap_s=25, failures=60, lasts_s=30,
    ),
    "etcd-leader-lost": Fault(on(etcd, "systemctl stop etcd", "systemctl start etcd"), gap_s=2, failures=0),
    "etcd-majority-lost": Fault(
        on(etcd_majority, "systemctl stop etcd", "systemctl start etcd"), gap_s=5, failures=0, lasts_s=60,
    ),
    "store-away": Fault(store_away, gap_s=2, failures=0, lasts_s=180),
    "wal-full": Fault(fill_wal, gap_s=40, failures=600, lasts_s=30, prepare=wal_on_a_small_disk),
    "redis-killed": Fault(on(redis, "systemctl kill --signal=KILL redis-server"), gap_s=5, failures=0),
    "redis-hung": Fault(
        on(redis, "systemctl kill --signal=STOP redis-server", "systemctl kill --signal=CONT redis-server"),
        gap_s=8, failures=60, lasts_s=30,
    ),
    "redis-cut-off": Fault(on(redis, drop("input", "6379, 26379"), CUT), gap_s=8, failures=60, lasts_s=30),
    "pgbouncer-killed": Fault(on(first("api"), "systemctl kill --signal=KILL pgbouncer"), gap_s=3, failures=20),
    "haproxy-killed": Fault(on(first("api"), "systemctl kill --signal=KILL haproxy"), gap_s=3, failures=20),
    # Ours may fail without anybody noticing: killed, cut off, wrong.
    "guards-killed": Fault(on(group("api"), f"systemctl kill --signal=KILL {GUARD}"), gap_s=2, failures=0),
    "guards-cut-off": Fault(on(group("api"), of_unit(GUARD), CUT), gap_s=2, failures=0),
    "guard-wrong": Fault(wrong_guard, gap_s=2, failures=0, lasts_s=30),
    "watchers-killed": Fault(on(group("data"), f"systemctl kill --signal=KILL {WATCHER}"), gap_s=2, failures=0),
    "watchers-wrong": Fault(on(group("data"), of_unit(WATCHER), CUT), gap_s=2, failures=0, lasts_s=30),
    "api-killed": Fault(on(first("api"), "systemctl kill --signal=KILL 'api@*'"), gap_s=3, failures=20),
    "edge-killed": Fault(on(first("edge"), "systemctl kill --signal=KILL nginx"), gap_s=5, failures=60),
    "power-lost": Fault(power, gap_s=90, failures=4000, lasts_s=0),
}  # fmt: skip
