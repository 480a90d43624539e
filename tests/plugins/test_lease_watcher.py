"""When the lease of a silent leader is ended, and every reason to leave it. Two watchers share an etcd in memory."""

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lib.plugins import load_program

HOLDER, OTHERS = "data1", ("data2", "data3")
LEASE = "7587"
# What the holder gets when it takes it again.
AGAIN = str(int(LEASE) + 1)
LEADER, STEP_DOWN = "/service/arches/leader", "/service/arches/failover"
POLLS = 3

watcher = load_program("lease_watcher/files/lease_watcher.py")
Wal = watcher.Wal


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


class World:
    """Three hosts as the watchers on two of them see them."""

    def __init__(self) -> None:
        self.keys = {LEADER: HOLDER, "/service/arches/config": "{}"}
        self.revisions = dict.fromkeys(self.keys, 1)
        self.revision = 1
        self.lease = LEASE
        self.revoked: list[str] = []
        self.etcd_silent = {HOLDER}
        self.etcd_leader = "data2"
        self.etcd_follows: dict[str, str] = {}
        self.rest: dict[str, int] = dict.fromkeys(OTHERS, 0)
        self.postgres: dict[str, bool] = dict.fromkeys(OTHERS, False)
        self.wal = dict.fromkeys(OTHERS, Wal.ENDED)
        self.asking = ""
        self.watchers: list[Any] = []
        self.ended = False
        # With it: whoever lost a lease takes another one at once.
        self.takes_again = False
        self.without_lease: set[str] = set()

    def put(self, key: str, value: str) -> None:
        """Write a key."""
        self.revision += 1
        self.keys[key], self.revisions[key] = value, self.revision

    def post(self, address: str, path: str, body: Any, *_: object) -> dict[str, Any]:
        """A member of etcd."""
        host = address.removesuffix(":2379")
        if host in self.etcd_silent:
            raise watcher.NoAnswer(f"etcd on {host}: timed out")
        if path == "/v3/maintenance/status":
            leader = self.etcd_follows.get(host, self.etcd_leader)
            return {"header": {"member_id": f"id of {host}"}, "leader": f"id of {leader}"}
        if path == "/v3/maintenance/transfer-leadership":
            assert host == self.etcd_leader, "only the leader can"
            self.etcd_leader = body["targetID"].removeprefix("id of ")
            return {}
        if path == "/v3/kv/txn":
            prefixes = (base64.b64decode(one["request_range"]["key"]).decode() for one in body["success"])
            ranges = [{"response_range": {"kvs": self.below(prefix)}} for prefix in prefixes]
            return {"header": {"revision": str(self.revision)}, "responses": ranges}
        if path == "/v3/kv/put":
            self.put(base64.b64decode(body["key"]).decode(), base64.b64decode(body["value"]).decode())
        elif path == "/v3/kv/deleterange":
            self.keys.pop(base64.b64decode(body["key"]).decode(), None)
        elif path == "/v3/lease/revoke" and self.ended:
            raise watcher.Unknown(f"etcd on {host}: no such lease")
        elif path == "/v3/lease/revoke":
            self.revoked.append(body["ID"])
            if self.takes_again:
                self.lease = str(int(body["ID"]) + 1)
        return {"ID": "1"}

    def below(self, prefix: str) -> list[dict[str, str]]:
        """Keys with a prefix."""
        return [
            {"key": encoded(k), "value": encoded(v), "mod_revision": str(self.revisions[k])}
            | ({} if k in self.without_lease else {"lease": self.lease})
            for k, v in self.keys.items()
            if k.startswith(prefix)
        ]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The leader's host is silent for all."""
    world = World()

    def received(settings: Any) -> Any:
        return world.wal[settings.name]

    monkeypatch.setattr(watcher, "post", world.post)
    monkeypatch.setattr(watcher, "patroni_status", lambda *_: world.rest[world.asking])
    monkeypatch.setattr(watcher, "postgres_answers", lambda *_: world.postgres[world.asking])
    monkeypatch.setattr(watcher, "received_wal", received)
    yield world
    # Who answers first is enough for a watcher: what it asked the others would still go on in the next test's world.
    for one in world.watchers:
        one.etcd.pool.shutdown()
        one.pool.shutdown()


class Watch:
    """A watcher on each of some hosts, polling in turn."""

    def __init__(self, world: World, names: tuple[str, ...] = OTHERS, etcd: tuple[str, ...] = (HOLDER, *OTHERS)):
        self.world, self.lines = world, list[str]()
        members = {name: name for name in (HOLDER, *OTHERS)}
        asked = [f"{one}:2379" for one in etcd]
        self.all = {
            name: watcher.Watcher(
                watcher.Settings(
                    name, members, asked, 8008, 5432, "", "", "", 60.0, 0.1, POLLS, "monitor", "secret", "arches"
                ),
                ssl.create_default_context(),
                self.lines.append,
            )
            for name in names
        }
        world.watchers += self.all.values()

    def poll(self, times: int, before: Callable[[int], None] = lambda turn: None) -> None:
        """So many polls of each."""
        for turn in range(times):
            before(turn)
            for name, one in self.all.items():
                self.world.asking = name
                try:
                    one.poll()
                except watcher.NoAnswer as reason:
                    self.lines.append(f"nothing is done: {reason}")


def test_a_lost_leader_gives_up_its_lease(world: World) -> None:
    watch = Watch(world)
    # One poll to learn who leads, then silence, then both have heard each other.
    watch.poll(1 + POLLS + 2)
    assert set(world.revoked) == {LEASE}
    assert f"{HOLDER} is silent for all and no WAL comes from it: its lease is ended" in watch.lines


def teller(world: World, silent: int) -> Callable[[int], None]:
    """The other watcher, which tells in every turn for how many polls it has heard nothing."""
    view = {"leader": HOLDER, "lease": LEASE, "silent": silent, "wal": Wal.ENDED}
    return lambda turn: world.put("/arches/watch/data3", json.dumps(view))


def test_not_before_it_was_silent_for_all_polls(world: World) -> None:
    watch = Watch(world, ("data2",))
    watch.poll(POLLS, teller(world, 99))
    assert world.revoked == []
    watch.poll(1, teller(world, 99))
    assert set(world.revoked) == {LEASE}


def test_not_before_it_was_silent_for_the_other(world: World) -> None:
    watch = Watch(world, ("data2",))
    watch.poll(4 * POLLS, teller(world, POLLS - 1))
    assert world.revoked == []


def paused(world: World) -> None:
    world.put("/service/arches/config", json.dumps({"pause": True}))


def one_hears_patroni(world: World) -> None:
    world.rest["data3"] = 200


def one_hears_postgres(world: World) -> None:
    world.postgres["data3"] = True


def one_receives(world: World) -> None:
    world.wal["data3"] = Wal.FLOWS


def nobody_holds_it(world: World) -> None:
    del world.keys[LEADER]


def etcd_has_no_majority(world: World) -> None:
    world.etcd_silent = {HOLDER, "data3"}


def garbage(world: World) -> None:
    world.put("/arches/watch/data3", "no JSON")


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        (paused, "its lease stays: the cluster is paused"),
        (one_hears_patroni, "its lease stays: data3 does not find it silent"),
        (one_hears_postgres, "its lease stays: data3 does not find it silent"),
        (one_receives, "its lease stays: data3 receives WAL from it"),
        (one_receives, "its lease stays: this host receives WAL from it"),
        (nobody_holds_it, "nobody leads"),
        (etcd_has_no_majority, "nothing is done: etcd on data1: timed out; etcd on data3: timed out"),
    ],
)
def test_every_reason_leaves_the_lease(world: World, fact: Callable[[World], None], says: str) -> None:
    watch = Watch(world)
    watch.poll(1)
    fact(world)
    watch.poll(3 * POLLS)
    assert world.revoked == []
    assert STEP_DOWN not in world.keys
    assert any(says in line or set(says.split("; ")) <= set(line.split("; ")) for line in watch.lines), watch.lines


def test_one_watcher_alone_ends_nothing(world: World) -> None:
    watch = Watch(world, ("data2",))
    watch.poll(4 * POLLS)
    assert world.revoked == []
    assert f"{HOLDER} is silent, its lease stays: data3 does not find it silent" in watch.lines


def test_what_was_told_once_and_not_renewed_does_not_count(world: World) -> None:
    """The other was cut off after it had told: its view stays for a while."""
    watch = Watch(world, ("data2",))
    view = {"leader": HOLDER, "lease": LEASE, "silent": 99, "wal": Wal.ENDED}
    watch.poll(2)
    world.put("/arches/watch/data3", json.dumps(view))
    watch.poll(4 * POLLS)
    assert world.revoked == []


def test_a_view_of_an_earlier_lease_does_not_count(world: World) -> None:
    view = {"leader": HOLDER, "lease": "1", "silent": 99, "wal": Wal.ENDED}
    watch = Watch(world, ("data2",))
    watch.poll(4 * POLLS, lambda turn: world.put("/arches/watch/data3", json.dumps(view | {"silent": turn + 50})))
    assert world.revoked == []


def test_the_leader_does_not_watch_itself(world: World) -> None:
    world.rest[HOLDER], world.postgres[HOLDER], world.wal[HOLDER] = 0, False, Wal.ENDED
    world.etcd_silent = set()
    watch = Watch(world, (HOLDER,))
    watch.poll(4 * POLLS)
    assert world.revoked == []
    assert not any(key.startswith("/arches/watch/") for key in world.keys)


@pytest.mark.parametrize("etcd", [(HOLDER,), ("data2",)])
def test_one_member_of_etcd_is_never_enough(world: World, etcd: tuple[str, ...]) -> None:
    world.etcd_silent = set()
    watch = Watch(world, etcd=etcd)
    watch.poll(4 * POLLS)
    assert world.revoked == []
    assert set(watch.lines) == {"nothing is done: etcd has 1 member"}


def test_what_nobody_of_us_wrote_stops_it(world: World) -> None:
    watch = Watch(world)
    watch.poll(1)
    garbage(world)
    watch.poll(3 * POLLS, lambda turn: garbage(world))
    assert world.revoked == []


def test_whoever_is_second_finds_the_lease_ended(world: World) -> None:
    world.ended = True
    watch = Watch(world)
    watch.poll(1 + POLLS + 2)
    assert not any(line.startswith("nothing is done") for line in watch.lines), watch.lines


def test_a_leader_that_comes_back_starts_the_count_anew(world: World) -> None:
    watch = Watch(world)
    watch.poll(POLLS)
    world.rest = dict.fromkeys(OTHERS, 200)
    watch.poll(1)
    world.rest = dict.fromkeys(OTHERS, 0)
    watch.poll(POLLS - 1)
    assert world.revoked == []


@pytest.mark.parametrize("overdue", [OTHERS, ("data3",)])
def test_while_wal_is_overdue_the_leader_is_asked_to_step_down(world: World, overdue: tuple[str, ...]) -> None:
    """It may live and read that; when it does not, its lease is ended as soon as nothing comes any more."""
    world.wal |= dict.fromkeys(overdue, Wal.OVERDUE)
    watch = Watch(world)
    watch.poll(1 + POLLS + 2)
    assert json.loads(world.keys[STEP_DOWN]) == {"leader": HOLDER}
    assert world.revoked == []
    world.wal = dict.fromkeys(OTHERS, Wal.ENDED)
    watch.poll(2)
    assert set(world.revoked) == {LEASE}
    del world.keys[LEADER]
    watch.poll(2)
    assert STEP_DOWN not in world.keys, "Patroni would wait for two seconds"


def test_who_was_asked_is_asked_until_somebody_leads(world: World) -> None:
    """Who stepped down and reads that nobody leads would take the lease again, and a new timeline that nobody hears."""
    world.wal = dict.fromkeys(OTHERS, Wal.OVERDUE)
    watch = Watch(world)
    watch.poll(1 + POLLS + 2)
    del world.keys[LEADER]
    for _ in range(2 * POLLS):
        before = world.revisions[STEP_DOWN]
        watch.poll(1)
        assert json.loads(world.keys[STEP_DOWN]) == {"leader": HOLDER}
        assert world.revisions[STEP_DOWN] > before
    world.put(LEADER, "data2")
    # As Patroni does it who has won.
    del world.keys[STEP_DOWN]
    watch.poll(1)
    del world.keys[LEADER]
    watch.poll(1)
    assert STEP_DOWN not in world.keys


def test_whose_lease_was_ended_does_not_get_it_back_when_nobody_leads_for_long(world: World) -> None:
    watch = Watch(world)
    until_ended(watch)
    del world.keys[LEADER]
    watch.poll(watcher.UNLED_POLLS)
    assert STEP_DOWN not in world.keys, "Patroni would wait for two seconds"
    watch.poll(1)
    assert json.loads(world.keys[STEP_DOWN]) == {"leader": HOLDER}


def test_a_planned_switchover_is_not_touched(world: World) -> None:
    del world.keys[LEADER]
    planned = json.dumps({"leader": HOLDER, "member": "data2"})
    world.put(STEP_DOWN, planned)
    world.without_lease = {STEP_DOWN}
    Watch(world).poll(2)
    assert world.keys[STEP_DOWN] == planned


def until_ended(watch: Watch, lease: str = LEASE) -> None:
    """Poll until a silent leader's lease is ended, and no further; it was not asked to step down."""
    for _ in range(2 + POLLS + 2):
        if lease in watch.world.revoked:
            break
        watch.poll(1)
    assert lease in watch.world.revoked
    assert STEP_DOWN not in watch.world.keys


def test_a_leader_that_takes_its_lease_again_and_is_not_heard_is_asked_to_step_down(world: World) -> None:
    world.takes_again = True
    watch = Watch(world)
    until_ended(watch)
    # One poll to see the new lease and to tell that it is silent still, one to hear the other.
    watch.poll(2)
    assert json.loads(world.keys[STEP_DOWN]) == {"leader": HOLDER}
    assert set(world.revoked) == {LEASE}


def test_a_leader_that_was_heard_since_is_a_new_case(world: World) -> None:
    world.takes_again = True
    watch = Watch(world)
    until_ended(watch)
    world.rest = dict.fromkeys(OTHERS, 200)
    watch.poll(2)
    world.rest = dict.fromkeys(OTHERS, 0)
    until_ended(watch, AGAIN)
    assert set(world.revoked) == {LEASE, AGAIN}


def test_after_another_leader_it_is_a_new_case(world: World) -> None:
    world.takes_again = True
    watch = Watch(world)
    until_ended(watch)
    world.put(LEADER, "data2")
    watch.poll(1)
    world.put(LEADER, HOLDER)
    until_ended(watch, AGAIN)
    assert set(world.revoked) == {LEASE, AGAIN}


def leading(world: World) -> Watch:
    """The watcher on the leader's host, in good times."""
    world.rest[HOLDER], world.etcd_silent, world.etcd_leader = 200, set(), HOLDER
    return Watch(world, (HOLDER,))


def test_etcd_is_led_from_another_host_than_postgres(world: World) -> None:
    watch = leading(world)
    watch.poll(2)
    assert world.etcd_leader == "data2"
    world.etcd_leader = HOLDER
    world.etcd_follows["data2"] = "data3"
    watch.poll(watcher.ETCD_POLLS)
    assert world.etcd_leader == "data3", "who follows another one may be cut off"
    watch.poll(2 * watcher.ETCD_POLLS)
    assert world.etcd_leader == "data3"
    assert len([line for line in watch.lines if "etcd is led by" in line]) == 2


def test_nobody_else_moves_etcds_leader(world: World) -> None:
    world.rest = dict.fromkeys((HOLDER, *OTHERS), 200)
    world.etcd_leader = "data2"
    Watch(world).poll(2 * watcher.ETCD_POLLS)
    assert world.etcd_leader == "data2"


def test_etcds_leader_stays_where_nobody_can_follow_it(world: World) -> None:
    watch = leading(world)
    world.etcd_follows = dict.fromkeys(OTHERS, "data3")
    watch.poll(2)
    assert world.etcd_leader == HOLDER
    assert "nothing is done: etcd: no other member follows its leader" in watch.lines
