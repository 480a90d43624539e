"""When the pool is paused and when it goes on again: with Patroni, PgBouncer, the leader and the clock in memory."""

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.plugins import load_program

LEADER, OTHER, THIRD = "data1", "data2", "data3"
NAMES = (LEADER, OTHER, THIRD)
POLLS, LIMIT_S = 3, 30
FOLLOWS, SILENT = 503, 0

guard = load_program("pool_guard/files/pool_guard.py")


class World:
    """Three members, and the pool of the host on which the guard runs."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.said = {LEADER: 200, OTHER: FOLLOWS, THIRD: FOLLOWS}
        self.asked: list[str] = []
        self.paused = False
        self.patience = 5
        self.waits: list[int] = []
        self.commands: list[str] = []
        self.pool_answers = True
        self.transaction_runs = False
        self.writes = True
        self.refuses: list[bool] = []
        self.warns = False
        self.planned = folder / "arches-pool-resume.timer"
        self.mark = folder / "paused"
        self.lines: list[str] = []

    def primary_status(self, address: str, *_: object) -> int:
        """Patroni of a member."""
        self.asked.append(address)
        return self.said[address]

    def tell(self, console: str, command: str, _: float) -> list[dict[str, str]]:
        """One command of PgBouncer."""
        assert console.endswith("/.s.PGSQL.6432")
        if not self.pool_answers:
            raise guard.NoAnswer(f"the pool: {guard.SLOW}")
        self.commands.append(command)
        if command == "SHOW DATABASES":
            return [{"name": "arches", "paused": str(int(self.paused))}]
        if command == "SHOW POOLS":
            return [{"database": "arches", "maxwait": str(self.waits.pop(0) if self.waits else 0)}]
        if command == "RESUME arches" and not self.paused:
            raise guard.NoAnswer("the pool: database arches is not paused")
        if command == "RELOAD":
            self.patience = 5
        elif command.startswith("SET query_wait_timeout = "):
            self.patience = int(command.split()[-1])
        else:
            self.paused = command == "PAUSE arches"
            if self.paused and self.transaction_runs:
                raise guard.NoAnswer(f"the pool: {guard.SLOW}")
        return []

    def psql(self, words: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        """A write of the application."""
        assert ("host=postgres port=5000 user=app" in words[2], env["PGPASSWORD"]) == (True, "app-secret")
        if not self.writes or (self.refuses and self.refuses.pop(0)):
            return subprocess.CompletedProcess([], 3, "", "ERROR:  cannot assign TransactionIds during recovery\n")
        if self.warns:
            return subprocess.CompletedProcess([], 0, "", "WARNING:  canceling wait for synchronous replication\n")
        return subprocess.CompletedProcess([], 0, "", "")

    def sleep(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """`data1` leads, all is well."""
    world = World(tmp_path)
    monkeypatch.setattr(guard, "primary_status", world.primary_status)
    monkeypatch.setattr(guard, "tell", world.tell)
    monkeypatch.setattr(guard.subprocess, "run", world.psql)
    monkeypatch.setattr(guard, "PLANNED", world.planned)
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep))
    return world


def settings(**changed: object) -> object:
    """As the role writes them, with members whose addresses are their names."""
    members = {name: name for name in NAMES}
    default = guard.Settings(
        members, 8008, "", 0.2, 0.2, 0.5, POLLS, LIMIT_S, "arches", 6432, "postgres", 5000,
        "app", "app-secret",
    )  # fmt: skip
    return default._replace(**changed)


class Watch:
    """A guard that polls when it is told to."""

    def __init__(self, world: World) -> None:
        own = settings()
        self.world = world
        members = guard.Members(own, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.guard = guard.Guard(own, members, guard.Pool(own), world.mark, world.lines.append)

    def poll(self, times: int = 1) -> None:
        """So many polls."""
        for _ in range(times):
            self.world.now += 0.2
            try:
                self.guard.poll()
            except guard.NoAnswer as reason:
                self.world.lines.append(str(reason))


@pytest.fixture
def watch(world: World) -> Watch:
    """A guard that has seen who leads."""
    watch = Watch(world)
    watch.poll(2)
    assert world.lines == [f"{LEADER} leads"]
    return watch


def lose(world: World) -> None:
    """The leader's host is gone."""
    world.said[LEADER] = SILENT


def hold(watch: Watch) -> None:
    """The leader is lost and queries wait."""
    lose(watch.world)
    watch.poll(POLLS)
    assert watch.world.paused


def test_in_good_times_the_others_are_asked_now_and_then_and_the_pool_is_left_alone(world: World, watch: Watch) -> None:
    world.asked.clear()
    watch.poll(2 * guard.OTHERS_EVERY)
    # Nobody is waited for when the leader has answered.
    watch.guard.members.threads.shutdown()
    assert world.asked.count(LEADER) == 2 * guard.OTHERS_EVERY
    assert world.asked.count(OTHER) == world.asked.count(THIRD) == 2
    assert world.commands == []


def test_queries_wait_when_nobody_led_for_all_polls(world: World, watch: Watch) -> None:
    lose(world)
    watch.poll(POLLS - 1)
    assert not world.paused
    watch.poll()
    assert world.paused
    assert world.patience > LIMIT_S
    assert world.mark.exists()
    assert world.lines[-1] == "nobody leads: queries wait"


def test_a_member_that_says_it_leads_in_between_begins_the_count_anew(world: World, watch: Watch) -> None:
    for _ in range(3):
        lose(world)
        watch.poll(POLLS - 1)
        world.said[LEADER] = 200
        watch.poll()
    assert world.commands == []


def test_queries_wait_at_once_when_the_leader_says_that_it_leads_no_more(world: World, watch: Watch) -> None:
    """Also when another one leads already: HAProxy may not have noticed, and a query would reach the wrong one."""
    world.said = {LEADER: FOLLOWS, OTHER: 200, THIRD: FOLLOWS}
    watch.poll()
    assert world.paused
    watch.poll()
    assert not world.paused
    assert world.lines[-1] == f"{OTHER} leads"


def test_queries_wait_when_another_leads_and_the_former_leader_does_not_know(world: World, watch: Watch) -> None:
    """It is cut off from the others, not from here; HAProxy takes both for the leader."""
    world.said[OTHER] = 200
    watch.poll(2 * guard.OTHERS_EVERY)
    assert f"{OTHER} leads instead of {LEADER}: queries wait" in world.lines


def test_one_write_of_two_is_not_enough(world: World, watch: Watch) -> None:
    """HAProxy still takes two members for the leader."""
    hold(watch)
    world.said[OTHER] = 200
    for world.refuses in ([False, True], [True, False]):
        watch.poll()
        assert world.paused
    watch.poll()
    assert not world.paused


def test_queries_go_on_after_a_write_and_not_before(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[OTHER], world.writes = 200, False
    watch.poll(3)
    assert world.paused
    world.writes = True
    watch.poll()
    assert not world.paused
    assert world.patience == 5
    assert not world.mark.exists()
    assert f"{OTHER} has acknowledged a write: queries go on after 0.8 s" in world.lines
    assert world.lines[-1] == f"{OTHER} leads"


def test_a_write_that_no_standby_has_is_none(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[OTHER], world.warns = 200, True
    watch.poll(3)
    assert world.paused


def test_a_write_alone_is_not_enough(world: World, watch: Watch) -> None:
    """A leader that is being stopped says nothing any more, but still writes."""
    hold(watch)
    watch.poll(5)
    assert world.paused


def test_who_reaches_nobody_does_nothing(world: World, watch: Watch) -> None:
    world.said = dict.fromkeys(NAMES, SILENT)
    watch.poll(20)
    assert world.commands == []
    assert world.lines[-1] == "no member answers: nothing is done"


def test_who_never_saw_a_leader_does_nothing(world: World) -> None:
    lose(world)
    Watch(world).poll(20)
    assert world.commands == []


def test_after_the_limit_queries_go_on_and_wait_no_more(world: World, watch: Watch) -> None:
    hold(watch)
    world.now += LIMIT_S - 1
    watch.poll()
    assert world.paused
    world.now += 1
    watch.poll()
    assert not world.paused
    assert not world.mark.exists()
    watch.poll(20)
    assert not world.paused
    # With a leader the next loss counts again.
    world.said[OTHER] = 200
    watch.poll()
    world.said[OTHER] = SILENT
    watch.poll(POLLS)
    assert world.paused


def test_the_limit_counts_although_a_member_says_that_it_leads(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[OTHER], world.writes = 200, False
    world.now += LIMIT_S
    watch.poll()
    assert not world.paused


def change_leaders_by_plan(world: World, watch: Watch) -> None:
    """A plan holds the pool until a member leads; here it is the one that did before."""
    world.planned.touch()
    world.said[LEADER] = FOLLOWS
    watch.poll()
    world.said[LEADER] = 200
    watch.poll()
    world.planned.unlink()


def test_what_a_plan_holds_is_left_alone(world: World, watch: Watch) -> None:
    world.planned.touch()
    world.paused = True
    lose(world)
    watch.poll(20)
    world.said[OTHER] = 200
    world.planned.unlink()
    world.paused = False
    watch.poll(5)
    assert world.commands == []
    assert "nobody leads, and a plan holds the pool: nothing is done" in world.lines


def test_a_plan_takes_over_what_the_guard_holds(world: World, watch: Watch) -> None:
    hold(watch)
    world.planned.touch()
    world.said[OTHER] = 200
    watch.poll(5)
    assert world.paused
    assert not world.mark.exists()


def test_what_somebody_else_has_paused_is_not_let_go_on(world: World, watch: Watch) -> None:
    world.paused = True
    hold(watch)
    assert not world.mark.exists()
    world.said[OTHER] = 200
    watch.poll(5)
    assert world.paused


def test_a_transaction_that_still_runs_does_not_matter(world: World, watch: Watch) -> None:
    world.transaction_runs = True
    hold(watch)
    assert world.mark.exists()
    world.said[OTHER] = 200
    watch.poll()
    assert not world.paused


def test_a_pool_that_does_not_answer_is_told_again(world: World, watch: Watch) -> None:
    world.pool_answers = False
    lose(world)
    watch.poll(POLLS)
    assert not world.mark.exists()
    assert world.lines[-1] == "the pool: no answer in time"
    world.pool_answers = True
    watch.poll()
    assert world.paused
    # The same on the way back: it is not over before the pool has heard it.
    world.said[OTHER], world.pool_answers = 200, False
    watch.poll()
    assert world.mark.exists()
    world.pool_answers = True
    watch.poll()
    assert not world.paused


def test_a_pool_that_was_restarted_meanwhile_goes_on_already(world: World, watch: Watch) -> None:
    hold(watch)
    world.paused = False
    world.said[OTHER] = 200
    watch.poll()
    assert not world.mark.exists()


def test_the_queue_is_empty_before_the_pool_is_impatient_again(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[OTHER] = 200
    world.waits = [4, 4, 2]
    world.commands.clear()
    watch.poll()
    assert world.commands == ["RESUME arches", *["SHOW POOLS"] * 4, "RELOAD"]


def test_a_pool_that_stays_stuck_is_let_go_on_twice(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[OTHER] = 200
    world.waits = [9] * 1000
    world.commands.clear()
    watch.poll()
    assert world.commands[-2:] == ["RESUME arches", "RELOAD"]


def test_false_alarms_make_the_guard_slower_for_a_while(world: World, watch: Watch) -> None:
    hold(watch)
    world.said[LEADER] = 200
    watch.poll()
    lose(world)
    watch.poll(2 * POLLS - 1)
    assert not world.paused
    watch.poll()
    assert world.paused
    world.said[LEADER] = 200
    watch.poll()
    world.now += guard.DOUBT_S
    watch.poll()
    hold(watch)


def test_what_an_earlier_guard_left_goes_on_at_once(world: World) -> None:
    world.paused = True
    world.mark.touch()
    Watch(world).poll()
    assert not world.paused
    assert not world.mark.exists()


def test_after_a_guard_has_ended_its_pause_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.paused = True
    world.mark.touch()
    world.pool_answers = False

    def later(_: float) -> None:
        world.pool_answers = True

    monkeypatch.setattr(guard.time, "sleep", later)
    guard.resume(guard.Pool(settings()), world.mark, world.lines.append)
    assert not world.paused
    assert not world.mark.exists()
    assert world.lines == ["the pool: no answer in time", "the guard has ended: queries go on"]


@pytest.mark.parametrize("why", ["nothing was paused", "a plan holds it"])
def test_after_a_guard_has_ended_nothing_else_is_let_go_on(world: World, why: str) -> None:
    world.paused = True
    if why == "a plan holds it":
        world.mark.touch()
        world.planned.touch()
    guard.resume(guard.Pool(settings()), world.mark, world.lines.append)
    assert world.paused
    assert world.commands == []


def test_a_slow_answer_counts_when_it_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The member is not asked a second time meanwhile, and the others are heard."""
    answers = threading.Event()

    def slow(address: str, *_: object) -> int:
        world.asked.append(address)
        if address == LEADER:
            answers.wait(10)
        return world.said[address]

    monkeypatch.setattr(guard, "primary_status", slow)
    members = guard.Members(settings(answer_s=0.05), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert members.ask(NAMES) == ("", {OTHER, THIRD})
    assert members.ask([LEADER]) == ("", set())
    answers.set()
    assert members.ask([LEADER]) == (LEADER, set())
    assert world.asked.count(LEADER) == 1


@pytest.mark.parametrize(
    ("plan_s_ago", "accepts", "pauses_s"),
    [(None, True, 1.0), (None, False, 0.6), (10, True, 2.6), (10, False, 0.6), (61, True, 1.0)],
    # Each at the first poll when it is due: they are 0.2 s apart.
    ids=["busy", "lost", "new and busy", "new and lost", "busy, and not new any more"],
)
def test_a_busy_leader_has_more_time_than_a_lost_one(
    plan_s_ago: int | None, accepts: bool, pauses_s: float, world: World, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()
    if plan_s_ago:
        change_leaders_by_plan(world, watch)
        world.now += plan_s_ago
        watch.poll()

    def silent(address: str, _port: int, _connect_s: float, _context: object, connected: Callable[[], None]) -> int:
        if address == LEADER:
            if accepts:
                connected()
            ends.wait(10)
        return world.said[address]

    monkeypatch.setattr(guard, "primary_status", silent)
    heard = world.now
    watch.guard.members.settings = settings(answer_s=0.02)
    while not world.paused and world.now < heard + 5:
        watch.poll()
    ends.set()
    assert world.now - heard == pytest.approx(pauses_s, abs=0.1)


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!I", len(content) + 4) + content


def text(value: str) -> bytes:
    return struct.pack("!I", len(value)) + value.encode()


READY = message(b"Z", b"I")
WELCOME = message(b"R", bytes(4)) + message(b"S", b"server_version\x001.24\0") + READY
COLUMNS = message(b"T", struct.pack("!H", 2) + b"name\0" + bytes(18) + b"host\0" + bytes(18))


def test_what_was_heard_long_ago_does_not_count(world: World) -> None:
    """A leader that gave up while a write was waited for."""
    members = guard.Members(settings(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    world.said[OTHER] = 200
    members.ask([OTHER, LEADER])
    # One of them was heard, the other has answered to nobody.
    members.threads.shutdown()
    world.now += 2 * guard.FRESH_S
    assert members.ask([]) == ("", set())


@pytest.fixture
def pgbouncer(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A console that sends what it is given, in turn, after each message of its client."""
    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor(1) as thread:
        server.bind(str(tmp_path / "console"))
        server.listen()

        def serve(answers: Iterable[bytes]) -> list[bytes]:
            heard = []
            client, _ = server.accept()
            with client:
                for answer in answers:
                    heard.append(client.recv(1000))
                    client.sendall(answer)
                client.recv(1000)
            return heard

        def speak(*answers: bytes) -> str:
            thread.submit(serve, answers)
            return str(tmp_path / "console")

        yield speak


def test_the_console_hands_over_rows(pgbouncer: Callable[..., str]) -> None:
    row = message(b"D", struct.pack("!H", 2) + text("arches") + struct.pack("!i", -1))
    console = pgbouncer(WELCOME, COLUMNS + row + row + message(b"C", b"SHOW\0") + READY)
    assert guard.tell(console, "SHOW DATABASES", 5) == [{"name": "arches", "host": ""}] * 2


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([WELCOME, message(b"E", b"SERROR\0Mno such database: arches\0\0") + READY], "no such database: arches"),
        ([message(b"E", b"SFATAL\0Mno such user\0\0")], "no such user"),
        ([message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")], "it wants a password"),
        # It hangs, and it goes away.
        ([WELCOME, b""], "no answer in time"),
        ([WELCOME[:3]], "the pool: "),
    ],
)
def test_the_console_complains(pgbouncer: Callable[..., str], answers: list[bytes], says: str) -> None:
    with pytest.raises(guard.NoAnswer, match=says):
        guard.tell(pgbouncer(*answers), "PAUSE arches", 0.3)


def test_there_is_no_console(tmp_path: Path) -> None:
    with pytest.raises(guard.NoAnswer, match="No such file"):
        guard.tell(str(tmp_path / "none"), "PAUSE arches", 1)


@pytest.mark.parametrize(("silence", "accepted"), [("refused", 0), ("hangs", 1)])
def test_a_member_that_says_nothing_is_silent(silence: str, accepted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped Patroni leaves a socket that accepts connections and never answers."""
    monkeypatch.setattr(guard, "PATIENCE_S", 0.1)
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if silence == "refused":
            server.close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        assert guard.primary_status("127.0.0.1", port, 0.1, context, lambda: told.append("connected")) == SILENT
    assert len(told) == accepted
