"""Three data hosts: one of them makes the backups, whoever leads and whoever is lost. The tests follow one another."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib.scenario import feed, machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://data1"]
NAMES = ("data1", "data2", "data3")
SCENARIO = Path(__file__).parents[1]
CONVERGE = SCENARIO.parent / "default/converge.yml"
STREAMING = ("Quorum Standby", "streaming")


def members(asked: str) -> dict[str, tuple[str, str]]:
    """Role and state of every member, as one host's Patroni shows them."""
    shown = machine(asked).run("patronictl list --format json")
    return {m["Member"]: (m["Role"], m["State"]) for m in json.loads(shown.stdout or "[]")}


def alive() -> list[str]:
    """Names of the hosts that answer."""
    return [name for name in NAMES if machine(name).run("true").rc == 0]


def leader() -> str:
    """Name of the leader, empty without one."""
    return next((name for name, said in members(alive()[0]).items() if said == ("Leader", "running")), "")


def whole() -> bool:
    """Whether one leads and two stream."""
    return sorted(members(alive()[0]).values()) == [("Leader", "running"), STREAMING, STREAMING]


def acting() -> str:
    """The first streaming replica by name."""
    return min(name for name, said in members(alive()[0]).items() if said == STREAMING)


def labels() -> list[str]:
    """Names of the backups in the store."""
    shown = machine(alive()[0]).check_output("sudo -u postgres pgbackrest --stanza=arches --output=json info")
    return [backup["label"] for backup in json.loads(shown)[0]["backup"]]


def due_everywhere() -> None:
    """What every host's timer does at the same moment."""
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: machine(name).check_output("systemctl start arches-backup@due"), alive()))


def makers() -> dict[str, int]:
    """How many backups of Postgres each host has made since it was born, by its journal."""
    count = "journalctl -u arches-backup@due -o cat --no-pager | grep -cE '^(full|differential): done' || [ $? = 1 ]"
    return {name: int(machine(name).check_output(count)) for name in alive()}


def is_silent(silent: bool) -> None:
    """Take the store away without telling anybody, or give it back."""
    table = "table inet away { chain a { type filter hook input priority 0; tcp dport 7070 drop; }; }"
    feed(machine("store"), "nft -f -", table if silent else "delete table inet away")


def test_exactly_one_host_makes_what_is_due() -> None:
    wait_for("a whole cluster", whole, 60)
    due_everywhere()
    made = {name: count for name, count in makers().items() if count}
    assert list(made.values()) == [1] and len(labels()) == 1, "one full backup by one host, however often it was asked"
    assert list(made) == [acting()], "the first streaming replica by name"


def test_a_replica_is_read_and_the_leader_is_not() -> None:
    backup = "sudo -u postgres pgbackrest --stanza=arches --type=diff --log-level-console=detail backup"
    said = machine(acting()).check_output(backup)
    number = {name: place for place, name in enumerate([acting(), *sorted({*NAMES} - {acting()})], 1)}
    base = [line for line in said.splitlines() if "backup file" in line and "/base/" in line]
    assert "wait for replay on the standby to reach" in said
    assert base and not [line for line in base if f"backup file {leader()}" in line], number
    assert not [line for line in base if "pg1" in line and number[leader()] == 1]


def test_two_hosts_at_once_are_one_too_many() -> None:
    sql = "CREATE TABLE filling AS SELECT id, gen_random_bytes(500) FROM generate_series(1, 200000) id"
    feed(machine(leader()), "psql -XAtq -U postgres arches", sql)
    other = next(name for name in NAMES if name not in (leader(), acting()))
    machine(acting()).check_output("systemctl start --no-block arches-backup@full")
    for name in (leader(), other):
        held = "sudo -u postgres pgbackrest --stanza=arches --output=json info | grep -q '\"held\":true'"
        wait_for(f"the lock is held on {name}", lambda name=name, held=held: machine(name).run(held).rc == 0, 30)
        refused = machine(name).run("arches-backup full")
        assert refused.rc == 75 and "Another backup is being made" in refused.stderr, refused
    state = "systemctl show -p ActiveState --value arches-backup@full"
    wait_for("the first one succeeds", lambda: machine(acting()).check_output(state) == "inactive", 120)


def test_an_absent_store_does_not_hold_a_change_of_leaders_up() -> None:
    """A standby asks no archive, and the former leader stops waiting for one."""
    old, new = leader(), acting()
    switch = f"patronictl switchover arches --leader {old} --candidate {new} --force"
    is_silent(True)
    try:
        feed(machine(old), "psql -XAtq -U postgres arches", "SELECT pg_switch_wal()")
        began = time.monotonic()
        assert machine(new).run(switch).rc == 0
        write = (
            "psql -XAtq -U postgres arches -c 'INSERT INTO canary.beat VALUES (clock_timestamp(), $$switch$$, $$[]$$)'"
        )
        wait_for("the new leader takes writes", lambda: machine(new).run(write).rc == 0, 60)
        took = time.monotonic() - began
        print(f"switchover without a store: {took:.1f} s")
        assert took < 20, "much less than the minutes after which pgBackRest gives up"
        wait_for("the former leader follows", whole, 120)
    finally:
        is_silent(False)


def test_the_leader_is_lost_and_the_next_backup_is_made() -> None:
    lost, before = leader(), labels()
    play(SCENARIO / "machine.yml", {"machine": lost, "state": "killed"})
    wait_for("another leads", lambda: leader() not in ("", lost), 90)
    wait_for("one streams", lambda: STREAMING in members(alive()[0]).values(), 60)
    machine(acting()).check_output("arches-backup differential")
    assert len(labels()) == len(before) + 1
    assert machine(leader()).run("arches-backup prepare").stdout == "", "the store is as the new leader needs it"


def test_a_host_made_anew_takes_part_again_and_a_run_changes_nothing() -> None:
    lost = next(name for name in NAMES if name not in alive())
    play(SCENARIO / "machine.yml", {"machine": lost, "state": "absent"})
    play(SCENARIO / "machine.yml", {"machine": lost, "state": "present"})
    play(SCENARIO.parent / "default/prepare.yml", {}, "--limit", lost)
    play(CONVERGE)
    wait_for("a whole cluster", whole, 120)
    before = labels()
    machine(lost).check_output("arches-backup differential")
    assert len(labels()) == len(before) + 1, "any host can make one, also the new one"
    assert set(play(CONVERGE).values()) == {0}


def test_a_new_database_gets_its_place_and_a_full_backup() -> None:
    """All members are lost, and nobody restores: the next run upgrades the stanza, the next timer begins anew."""
    before = labels()
    for name in NAMES:
        machine(name).check_output("systemctl stop patroni && rm -rf /var/lib/postgresql/17/arches")
    machine("data1").check_output("printf 'arches\\nYes I am aware\\n' | patronictl remove arches")
    for name in NAMES:
        machine(name).check_output("systemctl start patroni")
    play(CONVERGE)
    wait_for("a whole cluster", whole, 120)
    due_everywhere()
    fresh = [label for label in labels() if label not in before]
    assert [label[-1] for label in fresh] == ["F"]
    assert set(play(CONVERGE).values()) == {0}
