"""Three Redis hosts. The tests follow one another: each leaves a whole set to the next."""

import itertools
import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel
from testinfra.host import Host

from lib.scenario import PROJECT, machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://redis1"]
NAMES = ("redis1", "redis2", "redis3")
SCENARIO = Path(__file__).parents[1]


def redis(host: Host, *words: str, port: int = 6379) -> str:
    """Reply to one command of the admin, errors included; empty when the server does not answer."""
    options = "--no-auth-warning --tls --cacert /etc/arches/tls/ca.crt --user admin -h 127.0.0.1"
    return str(host.run(f"REDISCLI_AUTH=admin-secret redis-cli {options} -p {port} {shlex.join(words)}").stdout).strip()


def address(name: str) -> str:
    """A machine's address."""
    return str(machine(name).backend.get_variables()["ansible_host"])  # type: ignore[attr-defined]


def leader(asked: str) -> str:
    """Name of the leader by one host's Sentinel."""
    found = redis(machine(asked), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "arches", port=26379).partition("\n")[0]
    return {address(name): name for name in NAMES}.get(found, "")


def replicas(name: str) -> int:
    """How many replicas follow a leader without a gap."""
    return redis(machine(name), "INFO", "replication").count("state=online")


def agreed(names: tuple[str, ...] = NAMES) -> str:
    """Name of the leader if all of these say the same, else empty."""
    said = {leader(name) for name in names}
    return said.pop() if len(said) == 1 else ""


def whole() -> bool:
    """Whether all agree and both others follow in sync."""
    return agreed() != "" and replicas(agreed()) == 2


def bring(name: str, state: str) -> None:
    """Break or make a machine."""
    play(SCENARIO / "machine.yml", {"machine": name, "state": state})


def changes(*options: str) -> int:
    """Apply the role to all hosts; the number of changes of all together."""
    return sum(play(PROJECT / "molecule/converge.yml", {}, *options).values())


def fact[T](what: str, probe: Callable[[], T], timeout_s: float = 60) -> T:
    """Wait as long as a busy computer may need."""
    return wait_for(what, probe, timeout_s, interval_s=0.5)


def test_first_by_name_leads_two_replicas() -> None:
    fact("a whole set", whole)
    assert agreed() == "redis1"


def test_writes_need_a_replica() -> None:
    assert redis(machine("redis1"), "SET", "before", "1") == "OK"
    for name in ("redis2", "redis3"):
        machine(name).check_output("systemctl stop redis-server")
    fact("writes are refused", lambda: redis(machine("redis1"), "SET", "alone", "1").startswith("NOREPLICAS"))
    for name in ("redis2", "redis3"):
        machine(name).check_output("systemctl start redis-server")
    fact("a whole set", whole)
    assert redis(machine("redis1"), "SET", "again", "1") == "OK"


def test_silent_loss_of_the_leader() -> None:
    assert redis(machine("redis1"), "SET", "kept", "1") == "OK"
    assert redis(machine("redis1"), "WAIT", "2", "5000") == "2"
    bring("redis1", "killed")
    new = fact("a new leader", lambda: (found := agreed(NAMES[1:])) != "redis1" and found)
    fact("writes", lambda: redis(machine(new), "SET", "after", "1") == "OK")
    assert redis(machine(new), "GET", "kept") == "1"


def test_returning_host_follows_and_a_run_changes_nothing() -> None:
    bring("redis1", "present")
    fact("a whole set", whole)
    before = agreed()
    assert before != "redis1"
    assert changes("--check") == 0
    assert changes() == 0
    assert agreed() == before
    assert redis(machine("redis1"), "GET", "after") == "1"


def test_leader_that_was_lost_and_recreated_empty_follows() -> None:
    old = agreed()
    bring(old, "absent")
    bring(old, "present")
    play(PROJECT / "molecule/prepare.yml", {}, "--limit", old)
    assert changes() > 0
    fact("a whole set", whole)
    assert agreed() != old
    assert redis(machine(old), "GET", "kept") == "1"
    assert redis(machine(agreed()), "GET", "kept") == "1"
    assert changes() == 0


def test_restart_rolls_and_the_leader_hands_over() -> None:
    old = agreed()
    started = {name: machine(name).check_output("systemctl show -p MainPID --value redis-server") for name in NAMES}
    changed = {"redis_max_clients": 1000}
    play(PROJECT / "molecule/converge.yml", changed)
    others = [name for name in NAMES if name != old]
    for name in (*others, old):
        play(PROJECT / "roles/redis/molecule/default/restart.yml", changed, "--limit", name)
    fact("a whole set", whole)
    assert agreed() != old
    for name in NAMES:
        assert machine(name).check_output("systemctl show -p MainPID --value redis-server") != started[name]
        assert redis(machine(name), "CONFIG", "GET", "maxclients").split() == ["maxclients", "1000"]
        assert not machine(name).file("/var/lib/arches/pending/redis").exists
        assert redis(machine(name), "GET", "kept") == "1"
        assert redis(machine(name), "ACL", "LOG") == ""
    assert sum(play(PROJECT / "molecule/converge.yml", changed).values()) == 0


class Writer(threading.Thread):
    """Writes one key after the other as the API does: it asks the Sentinels who leads, and tries again for a while."""

    def __init__(self) -> None:
        super().__init__()
        tls = {"ssl": True, "ssl_ca_certs": f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ca.crt"}
        account = {"username": "app", "password": "app-secret", "socket_timeout": 0.5, "retry": Retry(NoBackoff(), 0)}
        hosts = [(address(name), 26379) for name in NAMES]
        self.leader = Sentinel(hosts, sentinel_kwargs=account | tls).master_for("arches", **account, **tls)
        self.acknowledged: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.worst_s = 0.0
        self.ends = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            if self.ends.is_set():
                return
            began = time.monotonic()
            while not self.written(f"write-{number}") and time.monotonic() < began + 30:
                pass
            self.worst_s = max(self.worst_s, time.monotonic() - began)

    def written(self, key: str) -> bool:
        """One try."""
        try:
            self.leader.set(key, "1")
        except RedisError as error:
            self.refusals[f"{type(error).__name__}: {error}"] += 1
            return False
        self.acknowledged.append(key)
        return True


def test_handing_over_loses_no_acknowledged_write() -> None:
    """What a planned switchover does. A SENTINEL FAILOVER alone loses what is written until the old leader follows."""
    old = agreed()
    writer = Writer()
    writer.start()
    fact("the writer is at work", lambda: len(writer.acknowledged) > 100)
    play(SCENARIO / "hand_over.yml", {}, "--limit", old)
    seen = len(writer.acknowledged)
    fact("the writer goes on", lambda: len(writer.acknowledged) > seen + 100)
    writer.ends.set()
    writer.join()
    fact("a whole set", whole)
    assert agreed() != old
    present = writer.leader.exists(*writer.acknowledged)
    print(f"{len(writer.acknowledged)} writes, the worst took {writer.worst_s:.1f} s: {writer.refusals}")
    assert present == len(writer.acknowledged)
    assert writer.worst_s < 5, writer.refusals
    assert redis(machine(old), "ACL", "LOG") == ""


def test_nothing_moves_while_a_switchover_is_not_possible() -> None:
    old = agreed()
    others = [name for name in NAMES if name != old]
    for name in others:
        machine(name).check_output("systemctl stop redis-server")
    with pytest.raises(AssertionError, match="cannot hand over"):
        play(SCENARIO / "hand_over.yml", {}, "--limit", old)
    for name in others:
        machine(name).check_output("systemctl start redis-server")
    fact("a whole set", whole)
    assert agreed() == old
    assert redis(machine(old), "SET", "goes-on", "1") == "OK"
